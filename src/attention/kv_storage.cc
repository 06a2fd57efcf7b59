#include "attention/kv_storage.h"

#include <cstring>

#include "core/check.h"
#include "core/checked.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

// f32_to_bf16 without a call: append rounds some thousand values a token.
inline uint16_t round_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Elements of one key in the two tiles: K element d at d / 2 * 128 + d % 2 (bf16) or d * 64 (f32) from the
// key's first, V element d at d * 2 (bf16) or d (f32).
void write_bf16(const float* k, const float* v, const KvFormat& format, int key, char* pair) {
  uint32_t* k_tile = reinterpret_cast<uint32_t*>(pair) + key;
  for (int d = 0; d < format.head_dim; d += 2) {
    k_tile[d / 2 * kKeyTile] = round_to_bf16(k[d]) | static_cast<uint32_t>(round_to_bf16(k[d + 1])) << 16;
  }
  uint16_t* v_tile = reinterpret_cast<uint16_t*>(pair + format.k_tile_bytes()) +
                     int64_t{key / 2} * format.v_width() * 2 + key % 2;
  for (int d = 0; d < format.v_head_dim; ++d) v_tile[2 * d] = round_to_bf16(v[d]);
}

void write_f32(const float* k, const float* v, const KvFormat& format, int key, char* pair) {
  float* k_tile = reinterpret_cast<float*>(pair) + key;
  for (int d = 0; d < format.head_dim; ++d) k_tile[d * kKeyTile] = k[d];
  float* v_tile = reinterpret_cast<float*>(pair + format.k_tile_bytes()) + int64_t{key} * format.v_width();
  std::memcpy(v_tile, v, sizeof(float) * static_cast<size_t>(format.v_head_dim));
}

// Copies the elements of one key between two pairs of the same format.
template <typename Element, int kPacked>
void copy_key(const char* source, char* destination, const KvFormat& format, int key) {
  const Element* from = reinterpret_cast<const Element*>(source);
  Element* to = reinterpret_cast<Element*>(destination);
  for (int d = 0; d < format.head_dim; ++d) {
    const int at = (d / kPacked * kKeyTile + key) * kPacked + d % kPacked;
    to[at] = from[at];
  }
  from = reinterpret_cast<const Element*>(source + format.k_tile_bytes());
  to = reinterpret_cast<Element*>(destination + format.k_tile_bytes());
  for (int d = 0; d < format.v_head_dim; ++d) {
    const int at = (key / kPacked * format.v_width() + d) * kPacked + key % kPacked;
    to[at] = from[at];
  }
}

}  // namespace

Result<KvStorage> KvStorage::create(const KvFormat& format, int layers, int num_blocks,
                                    Allocator& allocator) {
  if (format.dtype != DType::f32 && format.dtype != DType::bf16) {
    return unsupported(tessera::format("kv dtype {} is not supported; use f32 or bf16", name(format.dtype)),
                       "kv_cache_dtype");
  }
  if (format.block_tokens != kKeyTile) {
    return invalid_argument(tessera::format("block_tokens={} must be {}", format.block_tokens, kKeyTile),
                            "block_tokens");
  }
  for (const auto& [dim, field] :
       {std::pair{format.head_dim, "head_dim"}, {format.v_head_dim, "v_head_dim"}}) {
    if (dim < 8 || dim > 256 || dim % 8 != 0) {
      return unsupported(tessera::format("{}={} must be a multiple of 8 from 8 to 256", field, dim), field);
    }
  }
  if (format.kv_heads < 1 || layers < 1 || num_blocks < 1) {
    return invalid_argument(tessera::format("kv_heads={}, layers={}, num_blocks={}: each must be at least 1",
                                            format.kv_heads, layers, num_blocks),
                            "kv_heads");
  }
  const auto bytes =
      (CheckedSize(static_cast<uint64_t>(format.pair_bytes())) * static_cast<uint64_t>(format.kv_heads) *
       static_cast<uint64_t>(layers) * static_cast<uint64_t>(num_blocks))
          .get();
  if (!bytes || *bytes > static_cast<uint64_t>(INT64_MAX)) {
    return resource_exhausted(tessera::format("KV storage of {} blocks overflows 64 bits", num_blocks));
  }
  TESSERA_ASSIGN_OR_RETURN(Buffer data, Buffer::create(*bytes, "KV storage", allocator));
  KvStorage storage = over(format, layers, num_blocks, data.data());
  storage.data_ = std::move(data);
  return storage;
}

KvStorage KvStorage::over(const KvFormat& format, int layers, int num_blocks, void* memory) {
  KvStorage storage;
  storage.format_ = format;
  storage.layers_ = layers;
  storage.num_blocks_ = num_blocks;
  storage.tiles_ = static_cast<char*>(memory);
  return storage;
}

void KvStorage::append(Context& context, int layer, const KvRows& rows) {
  TESSERA_CHECK(layer >= 0 && layer < layers_);
  context.pool.parallel_for(rows.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int block = rows.block[row], key = rows.offset[row];
      TESSERA_CHECK(block >= 0 && block < num_blocks_ && key >= 0 && key < format_.block_tokens);
      for (int head = 0; head < format_.kv_heads; ++head) {
        const float* k = rows.k + row * rows.k_row_stride + int64_t{head} * format_.head_dim;
        const float* v = rows.v + row * rows.v_row_stride + int64_t{head} * format_.v_head_dim;
        char* to = mutable_pair(layer, block, head);
        if (format_.dtype == DType::f32) {
          write_f32(k, v, format_, key, to);
        } else {
          write_bf16(k, v, format_, key, to);
        }
      }
    }
  });
}

void KvStorage::copy_rows(int source, int destination, int first, int count) {
  TESSERA_CHECK(source >= 0 && source < num_blocks_ && destination >= 0 && destination < num_blocks_);
  TESSERA_CHECK(first >= 0 && count >= 0 && first + count <= format_.block_tokens);
  if (source == destination || count == 0) return;
  for (int layer = 0; layer < layers_; ++layer) {
    for (int head = 0; head < format_.kv_heads; ++head) {
      const char* from = pair(layer, source, head);
      char* to = mutable_pair(layer, destination, head);
      if (count == format_.block_tokens) {
        std::memcpy(to, from, static_cast<size_t>(format_.pair_bytes()));
        continue;
      }
      for (int key = first; key < first + count; ++key) {
        if (format_.dtype == DType::f32) {
          copy_key<uint32_t, 1>(from, to, format_, key);
        } else {
          copy_key<uint16_t, 2>(from, to, format_, key);
        }
      }
    }
  }
}

void KvStorage::read(int layer, int block, int kv_head, int first, int count, float* k, float* v) const {
  TESSERA_CHECK(layer >= 0 && layer < layers_ && block >= 0 && block < num_blocks_);
  TESSERA_CHECK(kv_head >= 0 && kv_head < format_.kv_heads && first >= 0 &&
                first + count <= format_.block_tokens);
  const int packed = format_.dtype == DType::f32 ? 1 : 2;
  const char* k_tile = pair(layer, block, kv_head);
  const char* v_tile = k_tile + format_.k_tile_bytes();
  const auto element = [&](const char* tile, int at) {
    if (packed == 1) return reinterpret_cast<const float*>(tile)[at];
    return bf16_to_f32(reinterpret_cast<const uint16_t*>(tile)[at]);
  };
  for (int row = 0; row < count; ++row) {
    const int key = first + row;
    for (int d = 0; d < format_.head_dim; ++d) {
      k[int64_t{row} * format_.head_dim + d] =
          element(k_tile, (d / packed * kKeyTile + key) * packed + d % packed);
    }
    for (int d = 0; d < format_.v_head_dim; ++d) {
      v[int64_t{row} * format_.v_head_dim + d] =
          element(v_tile, (key / packed * format_.v_width() + d) * packed + key % packed);
    }
  }
}

}  // namespace tessera::attention
