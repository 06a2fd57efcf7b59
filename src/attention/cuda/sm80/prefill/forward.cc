#include "attention/cuda/sm80/prefill/forward.h"

#include "attention/cuda/common/seen_keys.h"
#include "attention/cuda/common/slots.h"
#include "attention/cuda/sm80/checks.h"
#include "attention/cuda/sm80/prefill/launch.h"

namespace tessera::attention::cuda::sm80 {
namespace {

using LaunchFunction = void (*)(const ForwardParams&, unsigned, void*);

struct Variant {
  LaunchFunction launch;
  ForwardConfig config;
  int element;
};

template <DType kType, int kDim, bool kGeneral>
constexpr Variant variant() {
  return {launch_forward<kType, kDim, kGeneral>, forward_config(kType, kDim, kGeneral),
          kType == DType::f32 ? 4 : 2};
}

template <DType kType, bool kGeneral>
Variant variant_of(int dim) {
  switch (dim) {
    case 64:
      return variant<kType, 64, kGeneral>();
    case 96:
      return variant<kType, 96, kGeneral>();
    case 128:
      return variant<kType, 128, kGeneral>();
    case 192:
      return variant<kType, 192, kGeneral>();
    default:
      return variant<kType, 256, kGeneral>();
  }
}

Variant variant_of(DType type, int dim, bool general) {
  if (type == DType::f32) return variant_of<DType::f32, true>(dim);
  if (type == DType::f16) {
    return general ? variant_of<DType::f16, true>(dim) : variant_of<DType::f16, false>(dim);
  }
  return general ? variant_of<DType::bf16, true>(dim) : variant_of<DType::bf16, false>(dim);
}

int64_t shared_bytes(const Variant& variant, int dim) {
  return variant.config.shared_bytes(dim * variant.element + 16);
}

// The general kernel where a feature asks for it, or where the plain one's tiles do not fit.
Variant choose(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p) {
  const int dim = dim_class(p.head_dim, p.v_head_dim);
  const Variant variant = variant_of(p.dtype, dim, make_features(p).general());
  return shared_bytes(variant, dim) <= device.shared_bytes ? variant : variant_of(p.dtype, dim, true);
}

int64_t row_tiles(const AttentionProblem& p, const Variant& variant) {
  return (p.seqlen_q + variant.config.rows() - 1) / variant.config.rows();
}

Status check_tensors(const AttentionProblem& p, const ForwardTensors& t) {
  TESSERA_RETURN_IF_ERROR(check_aligned("q", t.q, p, p.seqlen_q, p.heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("k", t.k, p, p.seqlen_k, p.kv_heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("v", t.v, p, p.seqlen_k, p.kv_heads));
  return check_aligned("o", t.o, p, p.seqlen_q, p.heads);
}

}  // namespace

Status supports_forward(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p) {
  TESSERA_RETURN_IF_ERROR(check_device(device));
  TESSERA_RETURN_IF_ERROR(check_dims(p));
  const int dim = dim_class(p.head_dim, p.v_head_dim);
  const Variant variant = choose(device, p);
  TESSERA_RETURN_IF_ERROR(check_blocks(row_tiles(p, variant) * p.heads * p.batch, p));
  return check_shared(device, shared_bytes(variant, dim), dim);
}

Status forward(tessera::cuda::Launch& launch, const AttentionProblem& p, const ForwardTensors& t) {
  TESSERA_RETURN_IF_ERROR(supports_forward(launch.device, p));
  TESSERA_RETURN_IF_ERROR(check_tensors(p, t));
  if (p.batch == 0 || p.seqlen_q == 0) return {};

  ForwardParams params{};
  params.features = make_features(p);
  const Variant variant = choose(launch.device, p);
  params.q = t.q.data, params.k = t.k.data, params.v = t.v.data, params.o = t.o.data, params.lse = t.lse;
  params.q_batch = t.q.batch_stride, params.q_row = t.q.row_stride, params.q_head = t.q.head_stride;
  params.k_batch = t.k.batch_stride, params.k_row = t.k.row_stride, params.k_head = t.k.head_stride;
  params.v_batch = t.v.batch_stride, params.v_row = t.v.row_stride, params.v_head = t.v.head_stride;
  params.o_batch = t.o.batch_stride, params.o_row = t.o.row_stride, params.o_head = t.o.head_stride;
  params.batch = static_cast<int>(p.batch);
  params.heads = p.heads;
  params.group = p.heads / p.kv_heads;
  params.head_dim = p.head_dim;
  params.v_head_dim = p.v_head_dim;
  params.row_tiles = static_cast<int>(row_tiles(p, variant));
  params.last_first = p.mask.causal;
  if (params.features.holes()) {
    const size_t bytes = static_cast<size_t>(p.batch * p.kv_heads * p.seqlen_k);
    TESSERA_ASSIGN_OR_RETURN(void* seen, launch.workspace.get(kSeenKeysSlot, bytes, launch.stream));
    params.seen = static_cast<uint8_t*>(seen);
    TESSERA_RETURN_IF_ERROR(mark_seen_keys(launch, params.features, params.batch, p.heads, p.kv_heads,
                                           static_cast<uint8_t*>(seen)));
  }
  variant.launch(params, static_cast<unsigned>(row_tiles(p, variant) * p.heads * p.batch),
                 launch.stream.handle());
  return tessera::cuda::launched("sm80 forward", describe(p));
}

}  // namespace tessera::attention::cuda::sm80
