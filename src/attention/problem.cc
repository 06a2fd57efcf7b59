#include "attention/problem.h"

#include <cmath>
#include <tuple>

#include "attention/execution.h"
#include "attention/sequences.h"
#include "core/checked.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

// Positions are 32-bit in plans and kernels.
constexpr int64_t kMostPositions = int64_t{1} << 30;
constexpr int64_t kMostTreeKeys = 4096;
// Counters of dropout are 32-bit; columns count in blocks of 16.
constexpr int64_t kMostCounter = int64_t{1} << 32;

Status out_of_range(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("{}={} must be {}", field, value, limit), field);
}

Status element_out_of_range(const char* field, int64_t index, int64_t value, const std::string& limit) {
  return invalid_argument(format("{}[{}]={} must be {}", field, index, value, limit), field);
}

struct Axis {
  int64_t size, stride;
};

// Bytes from the first element's start to the last one's end fit 64 bits.
template <size_t count>
bool span_fits(const Axis (&axes)[count], int64_t run, int64_t element) {
  CheckedSize span(static_cast<uint64_t>(run));
  for (const Axis& axis : axes) {
    if (axis.size > 1) {
      span = span + CheckedSize(static_cast<uint64_t>(axis.size - 1)) *
                        CheckedSize(static_cast<uint64_t>(axis.stride));
    }
  }
  const auto bytes = (span * CheckedSize(static_cast<uint64_t>(element))).get();
  return bytes && *bytes <= static_cast<uint64_t>(INT64_MAX);
}

Status validate_sizes(const AttentionProblem& p) {
  if (p.batch < 0 || p.batch > kMostPositions) return out_of_range("batch", p.batch, "from 0 to 2^30");
  if (p.seqlen_q < 0 || p.seqlen_q > kMostPositions)
    return out_of_range("seqlen_q", p.seqlen_q, "from 0 to 2^30");
  if (p.seqlen_k < 0 || p.seqlen_k > kMostPositions)
    return out_of_range("seqlen_k", p.seqlen_k, "from 0 to 2^30");
  if (p.heads < 1) return out_of_range("heads", p.heads, "at least 1");
  if (p.kv_heads < 1) return out_of_range("kv_heads", p.kv_heads, "at least 1");
  if (p.heads % p.kv_heads != 0) {
    return invalid_argument(format("heads={} must be a multiple of kv_heads={}", p.heads, p.kv_heads),
                            "heads");
  }
  if (p.head_dim < 8 || p.head_dim > 256 || p.head_dim % 8 != 0) {
    return unsupported(format("head_dim={} must be a multiple of 8 from 8 to 256", p.head_dim), "head_dim");
  }
  if (p.v_head_dim < 8 || p.v_head_dim > 256 || p.v_head_dim % 8 != 0) {
    return unsupported(format("v_head_dim={} must be a multiple of 8 from 8 to 256", p.v_head_dim),
                       "v_head_dim");
  }
  const CheckedSize rows = CheckedSize(static_cast<uint64_t>(p.batch)) *
                           CheckedSize(static_cast<uint64_t>(std::max(p.seqlen_q, p.seqlen_k))) *
                           CheckedSize(static_cast<uint64_t>(p.heads));
  const auto bytes = (rows * CheckedSize(256 * sizeof(float))).get();
  if (!bytes || *bytes > static_cast<uint64_t>(INT64_MAX)) {
    return invalid_argument(format("batch={} x seqlen_q={} or seqlen_k={} x heads={} overflows 64 bits",
                                   p.batch, p.seqlen_q, p.seqlen_k, p.heads),
                            "batch");
  }
  return {};
}

Status validate_slopes(const AttentionProblem& p) {
  if (p.alibi_slopes == nullptr) return {};
  const int64_t rows = p.alibi_batch_stride > 0 ? p.batch : 1;
  for (int64_t i = 0; i < rows * p.heads; ++i) {
    const float slope = p.alibi_slopes[i / p.heads * p.alibi_batch_stride + i % p.heads];
    if (!std::isfinite(slope)) {
      return invalid_argument(format("alibi_slopes of batch {} and head {} is {}; it must be finite",
                                     i / p.heads, i % p.heads, slope),
                              "alibi_slopes");
    }
  }
  return {};
}

Status validate_scores(const AttentionProblem& p) {
  if (!is_float(p.dtype)) {
    return unsupported(format("dtype={} is not supported; use f32, f16 or bf16", name(p.dtype)), "dtype");
  }
  if (!std::isfinite(p.scale)) return invalid_argument(format("scale={} must be finite", p.scale), "scale");
  if (!std::isfinite(p.softcap) || p.softcap < 0) {
    return invalid_argument(format("softcap={} must be finite and at least 0 (0: off)", p.softcap),
                            "softcap");
  }
  if (p.mask.window_left < -1)
    return out_of_range("window_left", p.mask.window_left, "at least -1 (-1: all)");
  if (p.mask.window_right < -1)
    return out_of_range("window_right", p.mask.window_right, "at least -1 (-1: all)");
  if (p.alibi_batch_stride < 0 || (p.alibi_batch_stride > 0 && p.alibi_slopes == nullptr) ||
      (p.alibi_batch_stride > 0 && p.alibi_batch_stride < p.heads)) {
    return out_of_range("alibi_batch_stride", p.alibi_batch_stride,
                        "0, or with alibi_slopes at least the number of heads");
  }
  if (p.sinks != nullptr) return unsupported("sinks are not supported; pass null", "sinks");
  if (p.bias != nullptr) return unsupported("a learned bias is not supported; pass null", "bias");
  return {};
}

// cu_seqlens: from 0, rising, no length above `longest`.
Status validate_cumulative(const char* field, const int32_t* sums, int64_t batch, int64_t longest,
                           const char* longest_field) {
  if (sums[0] != 0) return element_out_of_range(field, 0, sums[0], "0");
  for (int64_t i = 0; i < batch; ++i) {
    if (sums[i + 1] < sums[i]) {
      return element_out_of_range(field, i + 1, sums[i + 1], format("at least {}[{}]={}", field, i, sums[i]));
    }
    if (int64_t{sums[i + 1]} - sums[i] > longest) {
      return invalid_argument(format("{}: sequence {} has length {}, which exceeds {}={}", field, i,
                                     sums[i + 1] - sums[i], longest_field, longest),
                              field);
    }
  }
  return {};
}

Status validate_layout(const AttentionProblem& p) {
  if ((p.cu_seqlens_q == nullptr) != (p.cu_seqlens_k == nullptr)) {
    return invalid_argument("cu_seqlens_q and cu_seqlens_k must both be given or both be null",
                            p.cu_seqlens_q == nullptr ? "cu_seqlens_q" : "cu_seqlens_k");
  }
  for (const auto& [total, field] : {std::pair{p.total_q, "total_q"}, std::pair{p.total_k, "total_k"}}) {
    if (total < 0 || total > INT32_MAX) return out_of_range(field, total, "from 0 to 2^31 - 1");
    if (total != 0 && p.cu_seqlens_q == nullptr) return out_of_range(field, total, "0 without cu_seqlens");
  }
  return {};
}

// total_q and total_k say again what cu_seqlens say.
Status validate_totals(const AttentionProblem& p) {
  const std::tuple<int64_t, int32_t, const char*> totals[] = {
      {p.total_q, p.cu_seqlens_q[p.batch], "total_q"}, {p.total_k, p.cu_seqlens_k[p.batch], "total_k"}};
  for (const auto& [total, last, field] : totals) {
    if (total == 0 || total == last) continue;
    return invalid_argument(
        format("{}={} must be 0 or the last entry of cu_seqlens_{}, {}", field, total, field[6], last),
        field);
  }
  return {};
}

Status validate_sequences(const AttentionProblem& p) {
  if (p.cu_seqlens_q != nullptr) {
    TESSERA_RETURN_IF_ERROR(
        validate_cumulative("cu_seqlens_q", p.cu_seqlens_q, p.batch, p.seqlen_q, "seqlen_q"));
    TESSERA_RETURN_IF_ERROR(
        validate_cumulative("cu_seqlens_k", p.cu_seqlens_k, p.batch, p.seqlen_k, "seqlen_k"));
    TESSERA_RETURN_IF_ERROR(validate_totals(p));
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = p.cu_seqlens_k != nullptr ? p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b] : p.seqlen_k;
    for (const auto& [values, field] :
         {std::pair{p.seqused_k, "seqused_k"}, std::pair{p.leftpad_k, "leftpad_k"}}) {
      if (values != nullptr && (values[b] < 0 || values[b] > length)) {
        return element_out_of_range(field, b, values[b], format("from 0 to the batch's length {}", length));
      }
    }
    if (p.seqused_k == nullptr && p.leftpad_k == nullptr) break;
  }
  return {};
}

Status validate_mask_tensor(const AttentionProblem& p) {
  const MaskTensor& mask = p.mask.tensor;
  if (mask.kind == MaskKind::none) return {};
  if (mask.kind != MaskKind::boolean && mask.kind != MaskKind::additive) {
    return out_of_range("mask.kind", static_cast<int>(mask.kind), "none, boolean or additive");
  }
  if (mask.kind == MaskKind::additive && !is_float(mask.dtype)) {
    return unsupported(format("mask.dtype={} of an additive mask must be f32, f16 or bf16", name(mask.dtype)),
                       "mask.dtype");
  }
  const Axis axes[] = {{p.batch, mask.batch_stride},
                       {p.heads, mask.head_stride},
                       {p.seqlen_q, mask.row_stride},
                       {p.seqlen_k, mask.key_stride}};
  const char* fields[] = {"mask.batch_stride", "mask.head_stride", "mask.row_stride", "mask.key_stride"};
  bool empty = false;
  for (size_t i = 0; i < 4; ++i) {
    if (axes[i].stride < 0) return out_of_range(fields[i], axes[i].stride, "at least 0 (0 broadcasts)");
    empty |= axes[i].size == 0;
  }
  const int64_t element = mask.kind == MaskKind::boolean ? 1 : element_bytes(mask.dtype);
  if (!span_fits(axes, 1, element)) {
    return invalid_argument(format("mask strides {}, {}, {}, {}: the span of the tensor overflows 64 bits",
                                   mask.batch_stride, mask.head_stride, mask.row_stride, mask.key_stride),
                            "mask.batch_stride");
  }
  if (mask.data == nullptr && !empty) return invalid_argument("mask.data is null", "mask.data");
  if (reinterpret_cast<uintptr_t>(mask.data) % static_cast<uintptr_t>(element) != 0) {
    return invalid_argument(format("mask.data must be aligned to its {} byte elements", element),
                            "mask.data");
  }
  return {};
}

Status validate_ancestors(const AttentionProblem& p) {
  const Ancestors& tree = p.mask.ancestors;
  if (tree.tree_keys < 0 || tree.tree_keys > kMostTreeKeys) {
    return out_of_range("ancestors.tree_keys", tree.tree_keys, "from 0 (off) to 4096");
  }
  if (tree.tree_keys == 0) return {};
  if (tree.bits == nullptr && p.batch * p.seqlen_q > 0) {
    return invalid_argument("ancestors.bits is null", "ancestors.bits");
  }
  return {};
}

Status validate_tree(const AttentionProblem& p) {
  const Ancestors& tree = p.mask.ancestors;
  if (tree.tree_keys == 0) return {};
  for (int64_t b = 0; b < p.batch; ++b) {
    const SequenceView s = sequence_of(p, b);
    if (s.rows == 0) continue;
    if (s.rows > tree.tree_keys || s.keys < tree.tree_keys) {
      return invalid_argument(
          format(
              "ancestors.tree_keys={} must be at least the {} query rows and at most the {} keys of batch {}",
              tree.tree_keys, s.rows, s.keys, b),
          "ancestors.tree_keys");
    }
    for (int64_t t = 0; tree.depth != nullptr && t < tree.tree_keys; ++t) {
      const int64_t at = b * tree.tree_keys + t;
      if (tree.depth[at] < 0 || tree.depth[at] >= tree.tree_keys) {
        return element_out_of_range("ancestors.depth", at, tree.depth[at],
                                    format("from 0 to tree_keys - 1 = {}", tree.tree_keys - 1));
      }
    }
  }
  return {};
}

Status validate_dropout(const AttentionProblem& p) {
  const Dropout& d = p.dropout;
  if (!(d.p >= 0.0f && d.p < 1.0f)) {
    return invalid_argument(format("dropout.p={} must be at least 0 and below 1", d.p), "dropout.p");
  }
  if (d.p == 0) return {};
  struct Origin {
    const char* field;
    int64_t value, count, limit;
  };
  for (const Origin& o : {Origin{"dropout.batch0", d.batch0, p.batch, kMostCounter},
                          {"dropout.head0", d.head0, p.heads, kMostCounter},
                          {"dropout.row0", d.row0, p.seqlen_q, kMostCounter},
                          {"dropout.col0", d.col0, p.seqlen_k, 16 * kMostCounter}}) {
    if (o.value < 0 || o.value > o.limit - o.count) {
      return invalid_argument(format("{}={} must be from 0 to {}, so that the counters fit 32 bits", o.field,
                                     o.value, o.limit - o.count),
                              o.field);
    }
  }
  if (d.col0 % 16 != 0) return out_of_range("dropout.col0", d.col0, "a multiple of 16");
  return {};
}

}  // namespace

Status validate_sizes_and_options(const AttentionProblem& p) {
  if (p.struct_size != sizeof(AttentionProblem)) {
    return out_of_range("struct_size", p.struct_size, "sizeof(AttentionProblem) of this build");
  }
  TESSERA_RETURN_IF_ERROR(validate_sizes(p));
  TESSERA_RETURN_IF_ERROR(validate_scores(p));
  TESSERA_RETURN_IF_ERROR(validate_layout(p));
  TESSERA_RETURN_IF_ERROR(validate_mask_tensor(p));
  TESSERA_RETURN_IF_ERROR(validate_ancestors(p));
  return validate_dropout(p);
}

Status validate(const AttentionProblem& p) {
  TESSERA_RETURN_IF_ERROR(validate_sizes_and_options(p));
  TESSERA_RETURN_IF_ERROR(validate_slopes(p));
  TESSERA_RETURN_IF_ERROR(validate_sequences(p));
  return validate_tree(p);
}

Status check_tensor(const char* field, const void* data, int64_t batch_stride, int64_t row_stride,
                    int64_t head_stride, int64_t batches, int64_t rows, int64_t heads, int64_t dim,
                    DType dtype, bool written) {
  if (batches == 0 || rows == 0 || heads == 0) return {};
  const int64_t element = info(dtype).block_bytes;
  if (data == nullptr) {
    return invalid_argument(
        format("{} is null but has {} x {} x {} x {} elements", field, batches, rows, heads, dim), field);
  }
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(element) != 0) {
    return invalid_argument(format("{} must be aligned to its {} byte elements", field, element), field);
  }
  const Axis axes[] = {{batches, batch_stride}, {rows, row_stride}, {heads, head_stride}};
  const char* names[] = {"batch_stride", "row_stride", "head_stride"};
  for (size_t i = 0; i < 3; ++i) {
    if (axes[i].size <= 1) continue;
    if (axes[i].stride < 0 || (written && axes[i].stride == 0)) {
      return invalid_argument(format("{}.{}={} must be at least {}", field, names[i], axes[i].stride,
                                     written ? "1: the tensor is written" : "0"),
                              field);
    }
  }
  if (!span_fits(axes, dim, element)) {
    return invalid_argument(format("{}: strides {}, {}, {} of {} x {} x {} rows: the span overflows 64 bits",
                                   field, batch_stride, row_stride, head_stride, batches, rows, heads),
                            field);
  }
  return {};
}

}  // namespace tessera::attention
