#include <algorithm>
#include <cmath>

#include "attention/reference/reference.h"
#include "cuda/caches.h"

namespace tessera::cli {
namespace {

constexpr int64_t kReadPiece = 16384;
// What the reader's places hold together: more than any L2.
constexpr int64_t kReadMemory = int64_t{512} << 20;

}  // namespace

Result<DeviceCaches> DeviceCaches::create(const CacheShape& shape, uint32_t seed,
                                          const cuda::Stream& stream) {
  DeviceCaches c(shape);
  const auto tensor = [&](cuda::DeviceBuffer& to, int64_t count, uint32_t which) -> Status {
    TESSERA_ASSIGN_OR_RETURN(to, cuda::DeviceBuffer::create(static_cast<size_t>(2 * count), "the benchmark"));
    return bench::fill_normal(to.data(), count, shape.dtype, 8 * seed + which, stream);
  };
  const int64_t rows = shape.batch() * shape.heads * shape.dim;
  TESSERA_RETURN_IF_ERROR(tensor(c.q_, rows, 0));
  TESSERA_RETURN_IF_ERROR(tensor(c.k_, shape.elements(), 1));
  TESSERA_RETURN_IF_ERROR(tensor(c.v_, shape.elements(), 2));
  TESSERA_RETURN_IF_ERROR(tensor(c.o_, rows, 3));
  const auto integers = [&](cuda::DeviceBuffer& to, const std::vector<int32_t>& from) -> Status {
    TESSERA_ASSIGN_OR_RETURN(to, cuda::DeviceBuffer::create(from.size() * 4, "the benchmark"));
    TESSERA_RETURN_IF_ERROR(cuda::copy(to.data(), from.data(), from.size() * 4, stream));
    return stream.synchronize();
  };
  size_t width = 0;
  for (const auto& table : shape.tables) width = std::max(width, table.size());
  std::vector<int32_t> flat;
  for (const auto& table : shape.tables) {
    flat.insert(flat.end(), table.begin(), table.end());
    flat.resize(flat.size() + width - table.size(), 0);
  }
  TESSERA_RETURN_IF_ERROR(integers(c.table_, flat));
  TESSERA_RETURN_IF_ERROR(
      integers(c.lengths_, std::vector<int32_t>(shape.lengths.begin(), shape.lengths.end())));
  return c;
}

attention::AttentionProblem DeviceCaches::problem() const {
  attention::AttentionProblem p;
  p.batch = shape_.batch();
  p.seqlen_q = 1;
  p.heads = shape_.heads;
  p.kv_heads = shape_.kv_heads;
  p.head_dim = p.v_head_dim = shape_.dim;
  p.dtype = shape_.dtype;
  p.scale = 1.0f / std::sqrt(static_cast<float>(shape_.dim));
  return p;
}

attention::CacheView DeviceCaches::view() const {
  attention::CacheView view;
  view.k = attention::contiguous<void*>(k_.data(), shape_.slots, shape_.kv_heads, shape_.dim);
  view.v = attention::contiguous<void*>(v_.data(), shape_.slots, shape_.kv_heads, shape_.dim);
  view.num_blocks = shape_.blocks;
  view.block_size = shape_.slots;
  view.seqlens = lengths_.as<int32_t>();
  if (shape_.paged) {
    view.block_table = table_.as<int32_t>();
    view.max_blocks = static_cast<int64_t>(table_.size() / 4) / shape_.batch();
  }
  return view;
}

attention::CacheTensors DeviceCaches::tensors() const {
  attention::CacheTensors t;
  t.q = attention::contiguous<const void*>(q_.data(), 1, shape_.heads, shape_.dim);
  t.o = attention::contiguous<void*>(o_.data(), 1, shape_.heads, shape_.dim);
  return t;
}

Result<double> DeviceCaches::error(const cuda::Stream& stream) const {
  double worst = 0, largest = 0;
  TESSERA_RETURN_IF_ERROR(error_of(0, stream, &worst, &largest));
  TESSERA_RETURN_IF_ERROR(error_of(shape_.batch() - 1, stream, &worst, &largest));
  return worst / largest;
}

Status DeviceCaches::error_of(int64_t sequence, const cuda::Stream& stream, double* worst,
                              double* largest) const {
  const CacheShape& s = shape_;
  const int64_t width = int64_t{s.kv_heads} * s.dim, block = s.slots * width;
  const auto fetch = [&](const cuda::DeviceBuffer& from, int64_t first, int64_t count, float* to) -> Status {
    std::vector<uint16_t> bits(static_cast<size_t>(count));
    TESSERA_RETURN_IF_ERROR(cuda::copy(bits.data(), from.as<uint16_t>() + first, bits.size() * 2, stream));
    TESSERA_RETURN_IF_ERROR(stream.synchronize());
    for (const uint16_t value : bits) *to++ = s.dtype == DType::f16 ? f16_to_f32(value) : bf16_to_f32(value);
    return {};
  };
  const int64_t row = int64_t{s.heads} * s.dim;
  std::vector<float> q(static_cast<size_t>(row)), o(q.size());
  TESSERA_RETURN_IF_ERROR(fetch(q_, sequence * row, row, q.data()));
  TESSERA_RETURN_IF_ERROR(fetch(o_, sequence * row, row, o.data()));
  const std::vector<int32_t>& table = s.tables[static_cast<size_t>(sequence)];
  std::vector<float> k(table.size() * static_cast<size_t>(block)), v(k.size());
  for (size_t i = 0; i < table.size(); ++i) {
    TESSERA_RETURN_IF_ERROR(fetch(k_, table[i] * block, block, k.data() + i * static_cast<size_t>(block)));
    TESSERA_RETURN_IF_ERROR(fetch(v_, table[i] * block, block, v.data() + i * static_cast<size_t>(block)));
  }
  for (const int head : {0, s.heads - 1}) {
    attention::AttentionProblem one = problem();
    one.batch = one.heads = one.kv_heads = 1;
    one.seqlen_k = s.lengths[static_cast<size_t>(sequence)];
    one.dtype = DType::f32;
    std::vector<double> want(static_cast<size_t>(s.dim));
    const int64_t at = head / (s.heads / s.kv_heads) * s.dim;
    attention::reference::attention(one, {q.data() + head * s.dim, 0, s.dim, s.dim},
                                    {k.data() + at, 0, width, s.dim}, {v.data() + at, 0, width, s.dim},
                                    want.data(), nullptr);
    for (int d = 0; d < s.dim; ++d) {
      const double off = std::abs(o[static_cast<size_t>(head * s.dim + d)] - want[static_cast<size_t>(d)]);
      if (!(off <= *worst)) *worst = off;
      *largest = std::max(*largest, std::abs(want[static_cast<size_t>(d)]));
    }
  }
  return {};
}

Result<DeviceReader> DeviceReader::create(double bytes, const cuda::Stream& stream) {
  DeviceReader reader;
  reader.each_ =
      std::max<int64_t>(1, (static_cast<int64_t>(bytes) + kReadPiece - 1) / kReadPiece) * kReadPiece;
  reader.places_ = static_cast<int>(std::max<int64_t>(1, kReadMemory / reader.each_));
  const int64_t all = reader.each_ * reader.places_;
  TESSERA_ASSIGN_OR_RETURN(reader.memory_,
                           cuda::DeviceBuffer::create(static_cast<size_t>(all), "the reader"));
  TESSERA_RETURN_IF_ERROR(bench::fill_normal(reader.memory_.data(), all / 2, DType::bf16, 3, stream));
  return reader;
}

Status DeviceReader::read(int i, const cuda::DeviceProperties& device, const cuda::Stream& stream) const {
  return bench::read_all(memory_.as<char>() + i % places_ * each_, each_, device, stream);
}

}  // namespace tessera::cli
