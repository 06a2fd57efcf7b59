#include "attention/cuda/sm80/prefill/forward.h"

#include "attention/cuda/common/seen_keys.h"
#include "attention/cuda/common/slots.h"
#include "attention/cuda/sm80/checks.h"
#include "attention/cuda/sm80/prefill/launch.h"
#include "attention/cuda/steps/append.h"
#include "attention/cuda/steps/launch.h"

namespace tessera::attention::cuda::sm80 {
namespace {

using LaunchFunction = void (*)(const ForwardParams&, unsigned, void*);

struct Variant {
  LaunchFunction launch;
  ForwardConfig config;
  int64_t shared_bytes;
};

template <DType kType, int kDim, bool kGeneral, bool kCache>
constexpr Variant variant() {
  constexpr ForwardConfig kConfig = forward_config(kType, kDim, kGeneral);
  return {launch_forward<kType, kDim, kGeneral, kCache>, kConfig,
          kConfig.shared_bytes(kDim * (kType == DType::f32 ? 4 : 2) + 16)};
}

template <DType kType, bool kGeneral>
Variant variant_of(int dim, bool cache) {
  if (cache) {
    return dim <= 64    ? variant<kType, 64, kGeneral, true>()
           : dim <= 128 ? variant<kType, 128, kGeneral, true>()
                        : variant<kType, 256, kGeneral, true>();
  }
  switch (dim) {
    case 64:
      return variant<kType, 64, kGeneral, false>();
    case 96:
      return variant<kType, 96, kGeneral, false>();
    case 128:
      return variant<kType, 128, kGeneral, false>();
    case 192:
      return variant<kType, 192, kGeneral, false>();
    default:
      return variant<kType, 256, kGeneral, false>();
  }
}

Variant variant_of(DType type, int dim, bool general, bool cache) {
  if (type == DType::f32) return variant_of<DType::f32, true>(dim, cache);
  if (type == DType::f16) {
    return general ? variant_of<DType::f16, true>(dim, cache) : variant_of<DType::f16, false>(dim, cache);
  }
  return general ? variant_of<DType::bf16, true>(dim, cache) : variant_of<DType::bf16, false>(dim, cache);
}

// The general kernel where a feature asks for it, or where the plain one's tiles do not fit. cache: K and V
// are a cache's.
Variant choose(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p, bool cache) {
  const int dim = dim_class(p.head_dim, p.v_head_dim);
  const Variant variant = variant_of(p.dtype, dim, make_features(p).general(), cache);
  return variant.shared_bytes <= device.shared_bytes ? variant : variant_of(p.dtype, dim, true, cache);
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

Status supports(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p, bool cache) {
  TESSERA_RETURN_IF_ERROR(check_device(device));
  TESSERA_RETURN_IF_ERROR(check_dims(p));
  const Variant variant = choose(device, p, cache);
  TESSERA_RETURN_IF_ERROR(check_blocks(row_tiles(p, variant) * p.heads * p.batch, p));
  return check_shared(device, variant.shared_bytes, dim_class(p.head_dim, p.v_head_dim));
}

// All but the cache and the seen keys.
ForwardParams params_of(const AttentionProblem& p, const ForwardTensors& t, const Variant& variant) {
  ForwardParams params{};
  params.features = make_features(p);
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
  return params;
}

Status launch_on(tessera::cuda::Launch& launch, const Variant& variant, const AttentionProblem& p,
                 const ForwardParams& params, const char* name) {
  variant.launch(params, static_cast<unsigned>(row_tiles(p, variant) * p.heads * p.batch),
                 launch.stream.handle());
  return tessera::cuda::launched(name, describe(p));
}

CacheRows rows_of_cache(const CacheView& c, const CacheAppend& append) {
  const bool paged = c.block_table != nullptr;
  CacheRows rows{};
  rows.block_table = paged ? c.block_table : c.cache_batch_idx;
  rows.table_stride = paged ? steps::table_stride_of(c) : 1;
  rows.by_page = Division(static_cast<uint32_t>(c.block_size));
  rows.num_blocks = static_cast<int>(c.num_blocks);
  rows.seqlens = c.seqlens;
  rows.seqlen = static_cast<int>(c.seqlen);
  rows.appended = static_cast<int>(append.seqlen);
  rows.capacity = steps::capacity_of(c);
  return rows;
}

}  // namespace

Status supports_forward(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p) {
  return supports(device, p, false);
}
Status supports_prompt(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p) {
  return supports(device, p, true);
}

Status forward(tessera::cuda::Launch& launch, const AttentionProblem& p, const ForwardTensors& t) {
  TESSERA_RETURN_IF_ERROR(supports_forward(launch.device, p));
  TESSERA_RETURN_IF_ERROR(check_tensors(p, t));
  if (p.batch == 0 || p.seqlen_q == 0) return {};

  const Variant variant = choose(launch.device, p, false);
  ForwardParams params = params_of(p, t, variant);
  if (params.features.holes()) {
    const size_t bytes = static_cast<size_t>(p.batch * p.kv_heads * p.seqlen_k);
    TESSERA_ASSIGN_OR_RETURN(void* seen, launch.workspace.get(kSeenKeysSlot, bytes, launch.stream));
    params.seen = static_cast<uint8_t*>(seen);
    TESSERA_RETURN_IF_ERROR(mark_seen_keys(launch, params.features, params.batch, p.heads, p.kv_heads,
                                           static_cast<uint8_t*>(seen)));
  }
  return launch_on(launch, variant, p, params, "sm80 forward");
}

Status attend_prompt(tessera::cuda::Launch& launch, const AttentionProblem& p, const CacheView& c,
                     const CacheAppend& append, const CacheTensors& t) {
  TESSERA_RETURN_IF_ERROR(supports_prompt(launch.device, p));
  TESSERA_RETURN_IF_ERROR(check_aligned("q", t.q, p, p.seqlen_q, p.heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("o", t.o, p, p.seqlen_q, p.heads));
  if (c.num_blocks > 0) {
    TESSERA_RETURN_IF_ERROR(steps::check_rows("k_cache", c.k));
    TESSERA_RETURN_IF_ERROR(steps::check_rows("v_cache", c.v));
  }
  ForwardTensors tensors{t.q, steps::read_only(c.k), steps::read_only(c.v), t.o, t.lse};
  if (append.seqlen > 0) {
    TESSERA_RETURN_IF_ERROR(steps::check_rows("k", append.k));
    TESSERA_RETURN_IF_ERROR(steps::check_rows("v", append.v));
    auto turned = steps::rows_of(t.q);
    TESSERA_RETURN_IF_ERROR(steps::write_new_rows(launch, p, c, append, turned));
    tensors.q = {turned.data, turned.batch_stride, turned.row_stride, turned.head_stride};
  }
  const Variant variant = choose(launch.device, p, true);
  ForwardParams params = params_of(p, tensors, variant);
  params.cache = rows_of_cache(c, append);
  return launch_on(launch, variant, p, params, "sm80 prefill over a cache");
}

}  // namespace tessera::attention::cuda::sm80
