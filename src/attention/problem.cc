#include "attention/problem.h"

#include <cmath>

#include "core/format.h"

namespace tessera::attention {
namespace {

// Positions are 32-bit in plans and kernels.
constexpr int64_t kMostPositions = int64_t{1} << 30;

Status out_of_range(const char* field, int64_t value, const char* limit) {
  return invalid_argument(format("{}={} must be {}", field, value, limit), field);
}

}  // namespace

Status validate(const AttentionProblem& p) {
  if (p.struct_size != sizeof(AttentionProblem)) {
    return out_of_range("struct_size", p.struct_size, "sizeof(AttentionProblem) of this build");
  }
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
  if (p.dtype != DType::f32 && p.dtype != DType::bf16) {
    return unsupported(format("dtype={} of k and v is not supported; use f32 or bf16", name(p.dtype)),
                       "dtype");
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
  if (p.mask.tensor.kind != MaskKind::none || p.mask.ancestors.tree_keys != 0 || p.dropout.p != 0 ||
      p.cu_seqlens_q != nullptr || p.cu_seqlens_k != nullptr || p.seqused_k != nullptr ||
      p.leftpad_k != nullptr || p.alibi_batch_stride != 0) {
    return unsupported(
        "mask tensors, ancestors, dropout, cu_seqlens, seqused_k, leftpad_k and slopes per batch "
        "have no kernel yet",
        "mask");
  }
  if (p.sinks != nullptr) return unsupported("sinks are not supported; pass null", "sinks");
  if (p.bias != nullptr) return unsupported("a learned bias is not supported; pass null", "bias");
  return {};
}

}  // namespace tessera::attention
