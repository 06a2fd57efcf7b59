#include "ops/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "core/format.h"

namespace tessera::ops {
namespace {

constexpr size_t kMaxSources = 16;
constexpr int64_t kMaxExtent = int64_t{1} << 24;  // of k and of one source's rows

struct BlockShape {
  int file_bytes;    // of a block in the file
  int file_quants;   // offset of its quants there
  int groups;        // 64-byte groups of 16 rows
  bool has_minimum;  // f16 m after f16 d
  uint32_t flip;     // makes signed quants unsigned
};

BlockShape shape_of(DType kind) {
  switch (kind) {
    case DType::q4_0:
      return {18, 2, 4, false, 0};
    case DType::q4_1:
      return {20, 4, 4, true, 0};
    case DType::q8_0:
      return {34, 2, 8, false, 0x80808080u};
    default:
      break;
  }
  TESSERA_CHECK_MSG(false, name(kind));
  return {};
}

// d * q + m of one block of the file. A product of an f16 and an 8-bit integer is exact in f32, so only the
// sum rounds.
void dequantize_block(DType kind, const uint8_t* block, float* out) {
  uint16_t d_bits, m_bits;
  std::memcpy(&d_bits, block, 2);
  const float d = f16_to_f32(d_bits);
  if (kind == DType::q8_0) {
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
    return;
  }
  std::memcpy(&m_bits, block + 2, 2);
  const bool minimum = kind == DType::q4_1;
  const float m = minimum ? f16_to_f32(m_bits) : 0.0f;
  const uint8_t* quants = block + (minimum ? 4 : 2);
  const int zero = minimum ? 0 : 8;
  for (int i = 0; i < 16; ++i) {
    const float low = d * static_cast<float>((quants[i] & 15) - zero);
    const float high = d * static_cast<float>((quants[i] >> 4) - zero);
    out[i] = minimum ? low + m : low;
    out[i + 16] = minimum ? high + m : high;
  }
}

// Rows [0, rows) of a panel of blocks, from `source` whose rows are `row_bytes` apart. The other lanes stay
// zero.
void pack_blocks(DType kind, const uint8_t* source, int64_t row_bytes, int rows, int64_t k, uint8_t* panel) {
  const BlockShape shape = shape_of(kind);
  const int64_t blocks = k / kQuantBlock;
  const int scale_bytes = shape.has_minimum ? 64 : 32;
  uint8_t* scales = panel + PackedWeight::quant_bytes(kind, k);
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* groups = panel + b * shape.groups * 64;
    for (int lane = 0; lane < rows; ++lane) {
      const uint8_t* block = source + lane * row_bytes + b * shape.file_bytes;
      std::memcpy(scales + b * scale_bytes + lane * 2, block, 2);
      if (shape.has_minimum) std::memcpy(scales + b * scale_bytes + 32 + lane * 2, block + 2, 2);
      for (int group = 0; group < shape.groups; ++group) {
        uint32_t word;
        std::memcpy(&word, block + shape.file_quants + group * 4, 4);
        word ^= shape.flip;
        std::memcpy(groups + group * 64 + lane * 4, &word, 4);
      }
    }
  }
}

template <typename T>
void pack_plain(const uint8_t* source, int64_t row_bytes, int rows, int64_t k, uint8_t* panel) {
  for (int64_t i = 0; i < k; ++i) {
    for (int lane = 0; lane < rows; ++lane) {
      std::memcpy(panel + (i * kPanel + lane) * static_cast<int64_t>(sizeof(T)),
                  source + lane * row_bytes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    }
  }
}

void pack_dequantized(DType kind, const uint8_t* source, int64_t row_bytes, int rows, int64_t k,
                      uint8_t* panel) {
  const int file_bytes = info(kind).block_bytes;
  float* out = reinterpret_cast<float*>(panel);
  float values[kQuantBlock];
  for (int lane = 0; lane < rows; ++lane) {
    for (int64_t b = 0; b < k / kQuantBlock; ++b) {
      dequantize_block(kind, source + lane * row_bytes + b * file_bytes, values);
      for (int i = 0; i < kQuantBlock; ++i) out[(b * kQuantBlock + i) * kPanel + lane] = values[i];
    }
  }
}

void pack_panel(const WeightSource& source, DType kind, int64_t index, int64_t k, uint8_t* panel) {
  const DTypeInfo& file = info(source.dtype);
  const int64_t row_bytes = k / file.block_elements * file.block_bytes;
  const uint8_t* data = static_cast<const uint8_t*>(source.data) + index * kPanel * row_bytes;
  const int rows = static_cast<int>(std::min<int64_t>(kPanel, source.rows - index * kPanel));
  if (info(kind).quantized) return pack_blocks(kind, data, row_bytes, rows, k, panel);
  if (file.quantized) return pack_dequantized(source.dtype, data, row_bytes, rows, k, panel);
  if (kind == DType::f32) return pack_plain<uint32_t>(data, row_bytes, rows, k, panel);
  pack_plain<uint16_t>(data, row_bytes, rows, k, panel);
}

Status check_source(const WeightSource& source, size_t index, int64_t k) {
  if (source.dtype == DType::i8 || source.dtype == DType::i32) {
    return unsupported(
        format("weight source {}: dtype {} has no kernel; convert it to f32, f16, bf16, q4_0, q4_1 or q8_0",
               index, name(source.dtype)));
  }
  if (source.data == nullptr) return invalid_argument(format("weight source {}: data is null", index));
  if (source.rows < 1 || source.rows > kMaxExtent) {
    return invalid_argument(
        format("weight source {}: rows is {}, must be 1 to {}", index, source.rows, kMaxExtent));
  }
  if (k % info(source.dtype).block_elements != 0) {
    return invalid_argument(format("weight source {}: k is {}, {} needs a multiple of {}", index, k,
                                   name(source.dtype), info(source.dtype).block_elements));
  }
  return {};
}

}  // namespace

int64_t PackedWeight::quant_bytes(DType kind, int64_t k) {
  return k / kQuantBlock * shape_of(kind).groups * 64;
}

int64_t PackedWeight::panel_bytes(DType kind, int64_t k) {
  if (!info(kind).quantized) return k * kPanel * info(kind).block_bytes;
  return k / kQuantBlock * kPanel * info(kind).block_bytes;
}

Result<PackedWeight> PackedWeight::pack(Context& context, std::span<const WeightSource> sources, int64_t k,
                                        Compute compute, PanelOrder order, Allocator& allocator) {
  if (sources.empty() || sources.size() > kMaxSources) {
    return invalid_argument(format("weight: {} sources, must be 1 to {}", sources.size(), kMaxSources));
  }
  if (k < 1 || k > kMaxExtent)
    return invalid_argument(format("weight: k is {}, must be 1 to {}", k, kMaxExtent));
  PackedWeight weight;
  weight.k_ = k;
  weight.order_ = order;
  int64_t total = 0;  // below 2^24 * 64 * 2^24 for each of 16 sources: no overflow
  for (size_t i = 0; i < sources.size(); ++i) {
    TESSERA_RETURN_IF_ERROR(check_source(sources[i], i, k));
    PanelSegment segment;
    segment.kind =
        compute == Compute::f32 && info(sources[i].dtype).quantized ? DType::f32 : sources[i].dtype;
    segment.first = weight.n_;
    segment.rows = sources[i].rows;
    segment.panels = segment.rows / kPanel + (segment.rows % kPanel != 0);
    // Whole cache lines, so that every 64-byte group is aligned.
    segment.step = (panel_bytes(segment.kind, k) + 63) / 64 * 64;
    segment.offset = total;
    total += segment.step * segment.panels;
    weight.n_ += segment.rows;
    weight.segments_.push_back(segment);
  }
  if (order == PanelOrder::interleaved) {
    if (sources.size() != 2 || sources[0].rows != sources[1].rows) {
      return invalid_argument(
          format("weight: interleaved panels need two sources of equal rows, got {}", sources.size()));
    }
    PanelSegment& gate = weight.segments_[0];
    PanelSegment& up = weight.segments_[1];
    up.offset = gate.step;
    gate.step = up.step = gate.step + up.step;
  }
  TESSERA_ASSIGN_OR_RETURN(weight.storage_,
                           Buffer::create(static_cast<size_t>(total), "packed weight", allocator));
  for (size_t i = 0; i < sources.size(); ++i) {
    const PanelSegment& segment = weight.segments_[i];
    uint8_t* base = weight.storage_.as<uint8_t>() + segment.offset;
    context.pool.parallel_for(segment.panels, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t p = begin; p < end; ++p)
        pack_panel(sources[i], segment.kind, p, k, base + p * segment.step);
    });
  }
  return weight;
}

bool PackedWeight::takes_quantized() const {
  return std::all_of(segments_.begin(), segments_.end(),
                     [](const PanelSegment& s) { return info(s.kind).quantized; });
}

bool PackedWeight::has_quantized() const {
  return std::any_of(segments_.begin(), segments_.end(),
                     [](const PanelSegment& s) { return info(s.kind).quantized; });
}

std::string PackedWeight::kinds() const {
  std::string text;
  for (const PanelSegment& segment : segments_) {
    const std::string kind = name(segment.kind);
    if (text.find(kind) == std::string::npos) text += (text.empty() ? "" : "+") + kind;
  }
  return text;
}

void PackedWeight::dequantize_row(int64_t row, float* out) const {
  TESSERA_CHECK(row >= 0 && row < n_);
  const PanelSegment* found = &segments_[0];
  for (const PanelSegment& segment : segments_) {
    if (row >= segment.first) found = &segment;
  }
  const int64_t index = (row - found->first) / kPanel, lane = (row - found->first) % kPanel;
  const uint8_t* data = panel(*found, index);
  if (found->kind == DType::f32) {
    for (int64_t i = 0; i < k_; ++i) std::memcpy(out + i, data + (i * kPanel + lane) * 4, 4);
    return;
  }
  if (!info(found->kind).quantized) {
    for (int64_t i = 0; i < k_; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data + (i * kPanel + lane) * 2, 2);
      out[i] = found->kind == DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
    return;
  }
  // Put the block together as the file had it, and read that.
  const BlockShape shape = shape_of(found->kind);
  const uint8_t* scales = data + quant_bytes(found->kind, k_);
  const int scale_bytes = shape.has_minimum ? 64 : 32;
  for (int64_t b = 0; b < k_ / kQuantBlock; ++b) {
    uint8_t block[34];
    std::memcpy(block, scales + b * scale_bytes + lane * 2, 2);
    if (shape.has_minimum) std::memcpy(block + 2, scales + b * scale_bytes + 32 + lane * 2, 2);
    for (int group = 0; group < shape.groups; ++group) {
      uint32_t word;
      std::memcpy(&word, data + (b * shape.groups + group) * 64 + lane * 4, 4);
      word ^= shape.flip;
      std::memcpy(block + shape.file_quants + group * 4, &word, 4);
    }
    dequantize_block(found->kind, block, out + b * kQuantBlock);
  }
}

}  // namespace tessera::ops
