// rope_forward and rope_backward over the caller's tensors.
#include <cstring>

#include "attention/device_kernels.h"
#include "attention/execution.h"
#include "attention/rope.h"
#include "core/boundary.h"
#include "core/context.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

// Elements below which a call is not worth waking the threads for: some microseconds of work.
constexpr int64_t kElementsPerTask = 4096;

Status refuse(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("rope: {}={} must be {}", field, value, limit), field);
}

// The rows of a problem that was found valid.
class Rows {
 public:
  explicit Rows(const RopeProblem& p) : p_(p) {}
  int64_t count() const { return p_.cu_seqlens != nullptr ? p_.cu_seqlens[p_.batch] : p_.batch * p_.seqlen; }
  // Calls fn(row, batch axis index, row of that batch, position) for rows [begin, end).
  template <typename Fn>
  void each(int64_t begin, int64_t end, Fn&& fn) const {
    int64_t batch = 0, first = 0;
    if (p_.cu_seqlens == nullptr) {
      batch = p_.seqlen > 0 ? begin / p_.seqlen : 0;
      first = batch * p_.seqlen;
    }
    for (int64_t row = begin; row < end; ++row) {
      while (row >= end_of(batch)) first = end_of(batch++);
      const int64_t t = row - first;
      fn(row, batch, t, position(row, batch, t));
    }
  }

 private:
  int64_t end_of(int64_t batch) const {
    return p_.cu_seqlens != nullptr ? p_.cu_seqlens[batch + 1] : (batch + 1) * p_.seqlen;
  }
  int64_t position(int64_t row, int64_t batch, int64_t t) const {
    if (p_.positions == nullptr) return (p_.offsets != nullptr ? p_.offsets[batch] : p_.offset) + t;
    return p_.positions[p_.cu_seqlens != nullptr ? row : batch * p_.positions_batch_stride + t];
  }
  const RopeProblem& p_;
};

}  // namespace

Status check_rope(const RopeProblem& p) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (p.struct_size != sizeof(RopeProblem))
    return refuse("struct_size", p.struct_size, "sizeof(RopeProblem) of this build");
  if (p.batch < 0 || p.batch > kMost) return refuse("batch", p.batch, "from 0 to 2^30");
  if (p.seqlen < 0 || p.seqlen > kMost) return refuse("seqlen", p.seqlen, "from 0 to 2^30");
  if (p.heads < 1) return refuse("heads", p.heads, "at least 1");
  if (!is_float(p.dtype))
    return unsupported(format("rope: dtype={} is not supported; use f32, f16 or bf16", name(p.dtype)),
                       "dtype");
  if (p.total < 0 || p.total > INT32_MAX) return refuse("total", p.total, "from 0 to 2^31 - 1");
  if (p.total != 0 && p.cu_seqlens == nullptr) return refuse("total", p.total, "0 without cu_seqlens");
  return validate_rotary(p.rotary, p.head_dim);
}

namespace {

Status validate(const RopeProblem& p) {
  TESSERA_RETURN_IF_ERROR(check_rope(p));
  if (p.cu_seqlens != nullptr) {
    if (p.cu_seqlens[0] != 0) return refuse("cu_seqlens[0]", p.cu_seqlens[0], "0");
    for (int64_t b = 0; b < p.batch; ++b) {
      if (p.cu_seqlens[b + 1] < p.cu_seqlens[b]) {
        return invalid_argument(
            format("rope: cu_seqlens falls from {} to {} at {}", p.cu_seqlens[b], p.cu_seqlens[b + 1], b + 1),
            "cu_seqlens");
      }
    }
    if (p.total != 0 && p.total != p.cu_seqlens[p.batch])
      return refuse("total", p.total, "0 or the last entry of cu_seqlens");
  }
  Status status;
  const Rows rows(p);
  rows.each(0, rows.count(), [&](int64_t row, int64_t batch, int64_t, int64_t position) {
    if (!status.ok() || (position >= 0 && position < p.rotary.positions)) return;
    status = invalid_argument(format("rope: row {} of batch {} stands at position {}, the table has {}", row,
                                     batch, position, p.rotary.positions),
                              "positions");
  });
  return status;
}

Status rotate(Context& context, const RopeProblem& p, const Strided<const void*>& x,
              const Strided<void*>& out, bool backward) {
  TESSERA_RETURN_IF_ERROR(validate(p));
  const Rows rows(p);
  const int64_t count = rows.count();
  if (count == 0) return {};
  if (x.data == nullptr || out.data == nullptr) {
    return invalid_argument(
        format("rope: {} is null but has {} rows", x.data == nullptr ? "x" : "out", count),
        x.data == nullptr ? "x" : "out");
  }
  const int64_t bytes = element_bytes(p.dtype);
  const RowKernels& kernels = row_kernels();
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (int64_t{p.heads} * p.head_dim));
  context.pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int) {
    RowRotator rotator(p.rotary, backward);
    float head_row[kMostRopeDim];
    const int dim = p.rotary.rotary_dim;
    rows.each(begin, end, [&](int64_t row, int64_t batch, int64_t t, int64_t position) {
      rotator.move_to(position);
      for (int64_t head = 0; head < p.heads; ++head) {
        const auto at = [&](const auto& s) {
          const int64_t place =
              p.cu_seqlens != nullptr ? row * s.row_stride : batch * s.batch_stride + t * s.row_stride;
          return (place + head * s.head_stride) * bytes;
        };
        const char* from = static_cast<const char*>(x.data) + at(x);
        char* to = static_cast<char*>(out.data) + at(out);
        kernels.widen(p.dtype, from, dim, head_row);
        rotator.turn(head_row);
        kernels.narrow(p.dtype, head_row, dim, to);
        if (from != to && dim < p.head_dim)
          std::memmove(to + dim * bytes, from + dim * bytes, static_cast<size_t>((p.head_dim - dim) * bytes));
      }
    });
  });
  return {};
}

}  // namespace

Status rope_forward(Context& context, const RopeProblem& problem, const Strided<const void*>& x,
                    const Strided<void*>& out) {
  return at_boundary([&] {
    return context.attention != nullptr ? context.attention->rope(problem, x, out, false)
                                        : rotate(context, problem, x, out, false);
  });
}

Status rope_backward(Context& context, const RopeProblem& problem, const Strided<const void*>& dout,
                     const Strided<void*>& dx) {
  return at_boundary([&] {
    return context.attention != nullptr ? context.attention->rope(problem, dout, dx, true)
                                        : rotate(context, problem, dout, dx, true);
  });
}

}  // namespace tessera::attention
