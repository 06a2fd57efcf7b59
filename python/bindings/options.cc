#include "bindings/options.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

#include "core/format.h"

namespace tessera::python {
namespace {

// The longest sequence of cu_seqlens, whose end must lie inside the tensor's rows.
int64_t longest(const int32_t* cu, int64_t batch, int64_t rows, int64_t max_seqlen, const char* name,
                const char* max_name) {
  int64_t most = 0;
  if (cu[0] != 0) raise_value_error(format("{}[0]={} must be 0", name, cu[0]));
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = int64_t{cu[b + 1]} - cu[b];
    if (length < 0) {
      raise_value_error(format("{}[{}]={} is less than {}[{}]={}; it must not fall", name, b + 1, cu[b + 1],
                               name, b, cu[b]));
    }
    most = std::max(most, length);
  }
  if (cu[batch] > rows) {
    raise_value_error(format("{}[{}]={} lies behind the tensor's {} rows", name, batch, cu[batch], rows));
  }
  if (most > max_seqlen) {
    raise_value_error(
        format("{}={} is less than the longest sequence of {}, {}", max_name, max_seqlen, name, most));
  }
  return most;
}

}  // namespace

void expect_places(const Options& options) {
  const std::pair<const AnyIn*, const char*> arrays[] = {{&options.mask, "mask"},
                                                         {&options.alibi_slopes, "alibi_slopes"},
                                                         {&options.cu_seqlens_q, "cu_seqlens_q"},
                                                         {&options.cu_seqlens_k, "cu_seqlens_k"},
                                                         {&options.seqused_k, "seqused_k"},
                                                         {&options.leftpad_k, "leftpad_k"}};
  for (const auto& [array, name] : arrays) expect_place(Array(*array), options.place, name);
}

int narrow(int64_t value, const char* name) {
  if (value > INT_MAX) raise_value_error(format("{}={} is more than {}", name, value, INT_MAX));
  return static_cast<int>(value);
}

void set_features(attention::AttentionProblem& p, const Options& options) {
  p.scale = options.scale;
  p.mask.causal = options.causal;
  p.mask.window_left = options.window_left;
  p.mask.window_right = options.window_right;
  p.softcap = options.softcap;
  const Array alibi(options.alibi_slopes);
  if (alibi && alibi.ndim == 2) {
    p.alibi_slopes = float_tensor(alibi, {p.batch, p.heads}, "alibi_slopes");
    p.alibi_batch_stride = p.heads;
  } else {
    p.alibi_slopes = float_tensor(alibi, {p.heads}, "alibi_slopes");
  }
  p.seqused_k = int32_vector(options.seqused_k, p.batch, "seqused_k");
  p.leftpad_k = int32_vector(options.leftpad_k, p.batch, "leftpad_k");
  p.dropout.p = options.dropout_p;
  p.dropout.seed = options.seed;
  p.dropout.offset = options.offset;
}

void set_cu_seqlens_q(attention::AttentionProblem& p, const Options& options, int64_t rows) {
  const Array cu(options.cu_seqlens_q);
  if (cu.ndim != 1 || cu.shape[0] < 1) raise_value_error("cu_seqlens_q must have batch + 1 elements");
  p.batch = cu.shape[0] - 1;
  p.cu_seqlens_q = int32_vector(cu, p.batch + 1, "cu_seqlens_q");
  if (options.place.device >= 0) {
    p.total_q = rows;
    p.seqlen_q = std::min(options.max_seqlen_q, rows);
    return;
  }
  p.seqlen_q = longest(p.cu_seqlens_q, p.batch, rows, options.max_seqlen_q, "cu_seqlens_q", "max_seqlen_q");
}

void set_cu_seqlens_k(attention::AttentionProblem& p, const Options& options, int64_t rows) {
  p.cu_seqlens_k = int32_vector(options.cu_seqlens_k, p.batch + 1, "cu_seqlens_k");
  if (p.cu_seqlens_k == nullptr) raise_value_error("cu_seqlens_q and cu_seqlens_k must be given together");
  if (options.place.device >= 0) {
    p.total_k = rows;
    p.seqlen_k = std::min(options.max_seqlen_k, rows);
    return;
  }
  p.seqlen_k = longest(p.cu_seqlens_k, p.batch, rows, options.max_seqlen_k, "cu_seqlens_k", "max_seqlen_k");
}

void zero_tail(const Array& array, const int32_t* cu, int64_t batch) {
  if (cu == nullptr || array.device_type != nb::device::cpu::value) return;
  const int64_t bytes = array.shape[2] * array.type.bits / 8;
  char* data = static_cast<char*>(array.data);
  for (int64_t row = cu[batch]; row < array.shape[0]; ++row) {
    for (int64_t head = 0; head < array.shape[1]; ++head) {
      std::memset(data + (row * array.strides[0] + head * array.strides[1]) * array.type.bits / 8, 0, bytes);
    }
  }
}

Lse::Lse(const Array& lse, const attention::AttentionProblem& p, const Sizes& q) {
  if (!lse) return;
  if (p.cu_seqlens_q == nullptr) {
    lse_ = float_tensor(lse, {p.batch, p.heads, p.seqlen_q}, "lse");
    return;
  }
  lse_ = float_tensor(lse, {p.heads, q.rows}, "lse");
  heads_ = p.heads;
  rows_ = q.rows;
  used_ = lse.device_type == nb::device::cpu::value ? p.cu_seqlens_q[p.batch] : rows_;
  if (used_ != rows_)
    copy_.resize(static_cast<size_t>(heads_ * used_) + 1);  // never empty: data() is not null
}

float* Lse::data() {
  return copy_.empty() ? lse_ : copy_.data();
}

void Lse::load() {
  if (copy_.empty()) return;
  for (int64_t head = 0; head < heads_; ++head) {
    std::copy_n(lse_ + head * rows_, used_, copy_.data() + head * used_);
  }
}

void Lse::store() {
  if (copy_.empty()) return;
  for (int64_t head = 0; head < heads_; ++head) {
    std::copy_n(copy_.data() + head * used_, used_, lse_ + head * rows_);
    std::fill_n(lse_ + head * rows_ + used_, rows_ - used_, -INFINITY);
  }
}

void expect_sizes(const Array& array, const Sizes& want, const char* name) {
  if (array.ndim == 4) {
    expect_shape(array, {want.batch, want.rows, want.heads, want.dim}, name);
  } else {
    expect_shape(array, {want.rows, want.heads, want.dim}, name);
  }
}

}  // namespace tessera::python
