#include "tessera/merge.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/cpu/row_kernels.h"
#include "attention/device_kernels.h"
#include "attention/execution.h"
#include "attention/merge.h"
#include "core/boundary.h"
#include "core/context.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

constexpr int kColumns = 256;  // of a row at a time, on the stack
constexpr int64_t kElementsPerTask = 4096;

Status refuse(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("merge_states: {}={} must be {}", field, value, limit), field);
}

Status validate(const MergeProblem& p) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (p.struct_size != sizeof(MergeProblem))
    return refuse("struct_size", p.struct_size, "sizeof(MergeProblem) of this build");
  if (p.batch < 0 || p.batch > kMost) return refuse("batch", p.batch, "from 0 to 2^30");
  if (p.seqlen < 0 || p.seqlen > kMost) return refuse("seqlen", p.seqlen, "from 0 to 2^30");
  if (p.heads < 1) return refuse("heads", p.heads, "at least 1");
  if (p.head_dim < 1) return refuse("head_dim", p.head_dim, "at least 1");
  for (const auto& [dtype, field] : {std::pair{p.dtype, "dtype"}, {p.out_dtype, "out_dtype"}}) {
    if (!is_float(dtype)) {
      return unsupported(
          format("merge_states: {}={} is not supported; use f32, f16 or bf16", field, name(dtype)), field);
    }
  }
  return {};
}

Status refuse_null(const void* data, const char* field, size_t part, int64_t rows) {
  if (data != nullptr) return {};
  return invalid_argument(format("merge_states: {} of part {} is null but has {} rows", field, part, rows),
                          field);
}

// The parts' weights in a row, summing to 1, into weight [parts]; returns the row's LSE.
double weigh(std::span<const AttentionPart> parts, int64_t batch, int64_t row, int64_t head, float* weight) {
  const auto lse_of = [&](const AttentionPart& part) -> double {
    const Strided<const float*>& s = part.lse;
    const float lse = s.data[batch * s.batch_stride + row * s.row_stride + head * s.head_stride];
    return lse == INFINITY ? -INFINITY : lse;
  };
  double most = -INFINITY, sum = 0;
  for (const AttentionPart& part : parts) {
    const double lse = lse_of(part);
    if (std::isnan(lse)) most = lse;
    if (lse > most) most = lse;  // false when either is NaN: a NaN stays
  }
  if (most == -INFINITY) {
    std::fill(weight, weight + parts.size(), 0.0f);
    return most;
  }
  for (const AttentionPart& part : parts) sum += std::exp(lse_of(part) - most);
  for (size_t i = 0; i < parts.size(); ++i) {
    weight[i] = static_cast<float>(std::exp(lse_of(parts[i]) - most) / sum);
  }
  return most + std::log(sum);
}

Status merge(Context& context, const MergeProblem& p, std::span<const AttentionPart> parts,
             const Strided<void*>& o, const Strided<float*>& lse) {
  TESSERA_RETURN_IF_ERROR(check_merge(p, parts, o));
  const int64_t rows = p.batch * p.seqlen;
  const RowKernels& kernels = row_kernels();
  const int64_t width = int64_t{p.heads} * p.head_dim;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / width);
  const int64_t in_bytes = element_bytes(p.dtype), out_bytes = element_bytes(p.out_dtype);
  context.pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end, int) {
    std::vector<float> weight(parts.size());
    float sum[kColumns], part_row[kColumns];
    for (int64_t i = begin * p.heads; i < end * p.heads; ++i) {
      const int64_t batch = i / p.heads / p.seqlen, row = i / p.heads % p.seqlen, head = i % p.heads;
      const auto at = [&](const auto& s) {
        return batch * s.batch_stride + row * s.row_stride + head * s.head_stride;
      };
      const double total = weigh(parts, batch, row, head, weight.data());
      for (int first = 0; first < p.head_dim; first += kColumns) {
        const int columns = std::min(kColumns, p.head_dim - first);
        std::fill(sum, sum + columns, std::isnan(total) ? NAN : 0.0f);
        for (size_t n = 0; n < parts.size(); ++n) {
          if (!(weight[n] > 0)) continue;  // NaN too: the sum is NaN already
          const char* from = static_cast<const char*>(parts[n].o.data) + (at(parts[n].o) + first) * in_bytes;
          kernels.widen(p.dtype, from, columns, part_row);
          kernels.accumulate(weight[n], part_row, columns, sum);
        }
        kernels.narrow(p.out_dtype, sum, columns, static_cast<char*>(o.data) + (at(o) + first) * out_bytes);
      }
      if (lse.data != nullptr) lse.data[at(lse)] = static_cast<float>(total);
    }
  });
  return {};
}

}  // namespace

Status check_merge(const MergeProblem& p, std::span<const AttentionPart> parts, const Strided<void*>& o) {
  TESSERA_RETURN_IF_ERROR(validate(p));
  const int64_t rows = p.batch * p.seqlen;
  if (rows == 0) return {};
  if (o.data == nullptr) {
    return invalid_argument(format("merge_states: o is null but has {} rows", rows), "o");
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    TESSERA_RETURN_IF_ERROR(refuse_null(parts[i].o.data, "o", i, rows));
    TESSERA_RETURN_IF_ERROR(refuse_null(parts[i].lse.data, "lse", i, rows));
  }
  return {};
}

Status merge_states(Context& context, const MergeProblem& problem, std::span<const AttentionPart> parts,
                    const Strided<void*>& o, const Strided<float*>& lse) {
  return at_boundary([&] {
    return context.attention != nullptr ? context.attention->merge_states(problem, parts, o, lse)
                                        : merge(context, problem, parts, o, lse);
  });
}

Status merge_states(Context& context, const MergeProblem& problem, const AttentionPart& a,
                    const AttentionPart& b, const Strided<void*>& o, const Strided<float*>& lse) {
  const AttentionPart parts[] = {a, b};
  return merge_states(context, problem, parts, o, lse);
}

}  // namespace tessera::attention
