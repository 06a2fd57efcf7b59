#include "attention/cuda/sm90/prefill/launch.h"

#include <algorithm>
#include <cmath>

#include "attention/cuda/common/slots.h"
#include "attention/cuda/common/tma.h"
#include "attention/cuda/sm90/prefill/config.h"
#include "core/format.h"

namespace tessera::attention::cuda::sm90 {
namespace {

using tessera::cuda::Launch;

constexpr int64_t kSectionBytes = int64_t{32} << 20;  // K and V of the heads in flight, about half of L2

// Tile shape by head size and length, as measured on an H200 (bench/results/attention_h200):
//   D = 64   four warpgroups of 64 keys up to 4k and whenever causal; three of 128 keys are ahead from 8k on.
//   D = 128  two warpgroups of 128 keys with Q in registers: wider key blocks lose at 512 what they gain at
//   16k.
PrefillVariant chosen(const AttentionProblem& p) {
  if (p.head_dim == 128) return PrefillVariant::d128_two_by_128;
  return p.mask.causal || p.seqlen_k <= 4096 ? PrefillVariant::d64_four_by_64
                                             : PrefillVariant::d64_three_by_128;
}

template <typename C>
Status run(Launch& launch, const AttentionProblem& p, const ForwardTensors& t) {
  PrefillParams params;
  const auto map = [&](CUtensorMap* to, const char* what, const Strided<const void*>& tensor, int64_t rows,
                       int64_t heads, int box_rows) {
    return tensor_map(to, what, p.dtype, tensor, p.batch, rows, heads, C::D, box_rows, C::D / 64,
                      Promotion::bytes_256);
  };
  TESSERA_RETURN_IF_ERROR(map(&params.q, "q", t.q, p.seqlen_q, p.heads, 64));
  TESSERA_RETURN_IF_ERROR(map(&params.k, "k", t.k, p.seqlen_k, p.kv_heads, C::BN));
  TESSERA_RETURN_IF_ERROR(map(&params.v, "v", t.v, p.seqlen_k, p.kv_heads, C::BN));
  const Strided<const void*> o{t.o.data, t.o.batch_stride, t.o.row_stride, t.o.head_stride};
  TESSERA_RETURN_IF_ERROR(map(&params.o, "o", o, p.seqlen_q, p.heads, 64));
  params.lse = t.lse;
  params.seqlen_q = static_cast<int32_t>(p.seqlen_q);
  params.seqlen_k = static_cast<int32_t>(p.seqlen_k);
  params.first_position = params.seqlen_k - params.seqlen_q;
  const auto window = [](int64_t w) { return w < 0 || w > kNoWindow ? kNoWindow : static_cast<int32_t>(w); };
  params.window_left = window(p.mask.window_left);
  params.window_right = p.mask.causal ? 0 : window(p.mask.window_right);
  params.scale_log2 = p.scale * 1.4426950408889634f;
  const auto m_blocks = static_cast<uint32_t>((p.seqlen_q + C::kRows - 1) / C::kRows);
  const auto group = static_cast<uint32_t>(p.heads / p.kv_heads);
  const auto heads = static_cast<uint32_t>(p.batch * p.heads);
  params.total_heads = static_cast<int32_t>(heads);
  params.tiles = static_cast<int32_t>(heads * m_blocks);
  params.m_blocks = Division(m_blocks);
  params.heads = Division(static_cast<uint32_t>(p.heads));
  params.group = Division(group);
  const int64_t head_bytes = p.seqlen_k * C::D * 2 * 2;
  const auto section = static_cast<uint32_t>(
      std::min<int64_t>(heads, std::max<int64_t>(1, kSectionBytes / head_bytes) * group));
  params.section_heads = Division(section);
  params.section_tiles = Division(section * m_blocks);
  params.next_tile = nullptr;
  if constexpr (C::kDynamic) {
    TESSERA_ASSIGN_OR_RETURN(void* const counter,
                             launch.workspace.get(kCounterSlot, sizeof(int32_t), launch.stream));
    params.next_tile = static_cast<int32_t*>(counter);
  }
  return launch_prefill<C>(launch.stream, std::min(params.tiles, launch.device.multiprocessors), params);
}

template <template <typename, Sight> class Config, typename T>
Status run_sight(Launch& launch, const AttentionProblem& p, const ForwardTensors& t) {
  const Mask& mask = p.mask;
  if (mask.window_left >= 0 || (!mask.causal && mask.window_right >= 0)) {
    return run<Config<T, Sight::window>>(launch, p, t);
  }
  return mask.causal ? run<Config<T, Sight::causal>>(launch, p, t)
                     : run<Config<T, Sight::full>>(launch, p, t);
}

template <typename T>
Status run_variant(Launch& launch, const AttentionProblem& p, const ForwardTensors& t,
                   PrefillVariant variant) {
  switch (variant) {
    case PrefillVariant::d64_four_by_64:
      return run_sight<D64FourBy64, T>(launch, p, t);
    case PrefillVariant::d64_three_by_128:
      return run_sight<D64ThreeBy128, T>(launch, p, t);
    default:
      return run_sight<D128TwoBy128, T>(launch, p, t);
  }
}

}  // namespace

Status prefill_supports(const AttentionProblem& p, const ForwardTensors&) {
  const auto no = [](const char* field, const std::string& message) { return unsupported(message, field); };
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return no("dtype", "sm90 prefill takes bf16 and f16");
  if (p.head_dim != p.v_head_dim || (p.head_dim != 64 && p.head_dim != 128)) {
    return no("head_dim", format("sm90 prefill takes head_dim = v_head_dim of 64 and 128, not {} and {}",
                                 p.head_dim, p.v_head_dim));
  }
  if (!(p.scale > 0.0f)) return no("scale", format("sm90 prefill takes a scale above 0, not {}", p.scale));
  if (p.seqlen_k == 0) return no("seqlen_k", "sm90 prefill takes at least one key");
  if (p.mask.tensor.kind != MaskKind::none) return no("mask", "sm90 prefill takes no mask tensor");
  if (p.mask.ancestors.tree_keys != 0) return no("ancestors", "sm90 prefill takes no ancestor mask");
  if (p.softcap != 0.0f) return no("softcap", "sm90 prefill takes no softcap");
  if (p.alibi_slopes != nullptr) return no("alibi_slopes", "sm90 prefill takes no ALiBi");
  if (p.cu_seqlens_q != nullptr) return no("cu_seqlens_q", "sm90 prefill takes no varlen");
  if (p.seqused_k != nullptr || p.leftpad_k != nullptr) {
    return no("seqused_k", "sm90 prefill takes neither seqused_k nor leftpad_k");
  }
  if (p.dropout.p != 0.0f) return no("dropout", "sm90 prefill takes no dropout");
  return {};
}

Status prefill(Launch& launch, const AttentionProblem& p, const ForwardTensors& t, PrefillVariant variant) {
  TESSERA_RETURN_IF_ERROR(prefill_supports(p, t));
  if (p.batch * p.seqlen_q == 0) return {};
  if (variant == PrefillVariant::automatic) variant = chosen(p);
  return p.dtype == DType::f16 ? run_variant<__half>(launch, p, t, variant)
                               : run_variant<__nv_bfloat16>(launch, p, t, variant);
}

}  // namespace tessera::attention::cuda::sm90
