// What the sm_80 kernels ask of tensors beyond the contract: 16-byte copies.
#pragma once

#include <string>

#include "core/cuda/device.h"
#include "core/format.h"
#include "tessera/attention.h"

namespace tessera::attention::cuda::sm80 {

// The smallest padded dimension that holds both.
constexpr int dim_class(int head_dim, int v_head_dim) {
  const int dim = head_dim > v_head_dim ? head_dim : v_head_dim;
  return dim <= 64 ? 64 : dim <= 96 ? 96 : dim <= 128 ? 128 : dim <= 192 ? 192 : 256;
}

// Copies move 16 bytes: the pointer and every stride that is used must be multiples.
template <typename Pointer>
Status check_aligned(const char* field, const Strided<Pointer>& t, const AttentionProblem& p, int64_t rows,
                     int64_t heads) {
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) {
    return unsupported(format("{}={} must be aligned to 16 bytes on a CUDA device", field,
                              reinterpret_cast<uintptr_t>(t.data)),
                       field);
  }
  const std::pair<const char*, int64_t> strides[] = {
      {"batch_stride", p.batch > 1 && p.cu_seqlens_q == nullptr ? t.batch_stride : 0},
      {"row_stride", rows > 1 ? t.row_stride : 0},
      {"head_stride", heads > 1 ? t.head_stride : 0}};
  for (const auto& [name, stride] : strides) {
    if (stride * element % 16 != 0) {
      return unsupported(format("{}.{}={} must be a multiple of {} elements on a CUDA device", field, name,
                                stride, 16 / element),
                         field);
    }
  }
  if (rows > 1 && t.row_stride >= int64_t{1} << 22) {
    return unsupported(
        format("{}.row_stride={} must be below 2^22 elements on a CUDA device", field, t.row_stride), field);
  }
  return {};
}

inline Status check_device(const tessera::cuda::DeviceProperties& device) {
  if (device.sm() < 80) {
    return unsupported(
        format("device {} is sm_{}; these kernels need sm_80 or later", device.name, device.sm()), "device");
  }
  return {};
}

inline Status check_shared(const tessera::cuda::DeviceProperties& device, int64_t bytes, int dim) {
  if (bytes > device.shared_bytes) {
    return unsupported(format("head_dim={} needs {} bytes of shared memory; device {} has {}", dim, bytes,
                              device.name, device.shared_bytes),
                       "head_dim");
  }
  return {};
}

inline Status check_dims(const AttentionProblem& p) {
  for (const auto& [field, dim] :
       {std::pair{"head_dim", p.head_dim}, std::pair{"v_head_dim", p.v_head_dim}}) {
    if (dim < 8 || dim > 256 || dim % 8 != 0) {
      return unsupported(format("{}={} must be a multiple of 8 from 8 to 256", field, dim), field);
    }
  }
  if (p.dtype != DType::f32 && p.dtype != DType::f16 && p.dtype != DType::bf16) {
    return unsupported(format("dtype={} is not supported; use f32, f16 or bf16", name(p.dtype)), "dtype");
  }
  return {};
}

// A grid has one axis.
inline Status check_blocks(int64_t blocks, const AttentionProblem& p) {
  if (blocks > INT32_MAX) {
    return unsupported(format("batch={} x heads={} x seqlen={} makes {} blocks; a grid has 2^31 - 1", p.batch,
                              p.heads, p.seqlen_q, blocks),
                       "batch");
  }
  return {};
}

inline std::string describe(const AttentionProblem& p) {
  return format("batch={} seqlen_q={} seqlen_k={} heads={} kv_heads={} head_dim={} v_head_dim={} dtype={}",
                p.batch, p.seqlen_q, p.seqlen_k, p.heads, p.kv_heads, p.head_dim, p.v_head_dim,
                name(p.dtype));
}

}  // namespace tessera::attention::cuda::sm80
