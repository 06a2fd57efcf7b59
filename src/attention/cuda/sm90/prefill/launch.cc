#include "attention/cuda/sm90/prefill/launch.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/cuda/common/seen_keys.h"
#include "attention/cuda/common/slots.h"
#include "attention/cuda/common/tma.h"
#include "attention/cuda/sm90/prefill/config.h"
#include "attention/cuda/sm90/prefill/packing.h"
#include "core/format.h"

namespace tessera::attention::cuda::sm90 {
namespace {

using tessera::cuda::Launch;

// K and V of the heads that are worked on at once: of about as many tiles as there are multiprocessors.
// Causal D = 128 at S = 512 on an H200: sections of 4, 8, 16 and 32 MB gave 393, 369, 373 and 343 TFLOP/s, at
// 2k 557, 573, 561 and 554.
constexpr int64_t kSectionBytes = int64_t{8} << 20;

// Tile shape by head size and length, as measured on an H200 (bench/results/attention_h200):
//   D = 64   four warpgroups of 64 keys up to 4k and whenever causal; three of 128 keys are ahead from 8k on.
//   D = 128  two warpgroups of 128 keys with Q in registers: wider key blocks lose at 512 what they gain at
//   16k.
//   D = 256  two warpgroups of 80 keys; what is cut (causal, windows) by 64 keys with the output from
//   registers up to 8k: 365, 474, 567, 622 and 647 TFLOP/s from 512 to 8k where 80 keys have 272, 400, 512,
//   586 and 634.
// Other sizes run as the next larger of 64, 96, 128 and 256, the rest zeros.
PrefillVariant chosen(const AttentionProblem& p) {
  const int dim = std::max(p.head_dim, p.v_head_dim);
  if (dim > 128) {
    const bool cut = p.mask.causal || p.mask.window_left >= 0 || p.mask.window_right >= 0;
    return cut && p.seqlen_k <= 8192 ? PrefillVariant::d256_two_by_64_registers
                                     : PrefillVariant::d256_two_by_80;
  }
  if (dim > 96) return PrefillVariant::d128_two_by_128;
  if (dim > 64) return PrefillVariant::d96_two_by_128;
  return p.mask.causal || p.seqlen_k <= 4096 ? PrefillVariant::d64_four_by_64
                                             : PrefillVariant::d64_three_by_128;
}

// Query rows of a tile.
int rows_of(PrefillVariant variant) {
  return variant == PrefillVariant::d64_four_by_64     ? 256
         : variant == PrefillVariant::d64_three_by_128 ? 192
                                                       : 128;
}

template <typename C>
Status run(Launch& launch, const AttentionProblem& p, const ForwardTensors& t, const PageTable& pages) {
  typename C::Params params;
  constexpr bool kGrouped = C::kForm == Form::grouped;
  const int group = p.heads / p.kv_heads;
  const bool packed_q = p.cu_seqlens_q != nullptr, packed_k = p.cu_seqlens_k != nullptr;
  const bool paged = pages.table != nullptr;
  const auto map = [&](CUtensorMap* to, const char* what, Strided<const void*> tensor, bool packed,
                       int64_t batches, int64_t rows, int64_t heads, int64_t dim, int box_rows,
                       bool grouped = false) {
    if (packed) {
      tensor.batch_stride = 0;
      batches = 1;
    }
    if (grouped) {
      return group_map(to, what, p.dtype, tensor, batches, rows, heads, dim, group, 64 / group,
                       Promotion::bytes_256);
    }
    return row_map(to, what, p.dtype, tensor, batches, rows, heads, dim, box_rows, Promotion::bytes_256);
  };
  params.total_q = static_cast<int32_t>(packed_q ? p.total_q : p.seqlen_q);
  params.total_k = static_cast<int32_t>(packed_k ? p.total_k : p.seqlen_k);
  // A box must not reach into the next page; where one holds all keys there is none.
  params.box_rows =
      paged && pages.page < p.seqlen_k ? static_cast<int32_t>(std::gcd<int64_t>(pages.page, C::BN)) : C::BN;
  const int64_t k_rows = paged ? pages.page : params.total_k, k_batches = paged ? pages.pages : p.batch;
  TESSERA_RETURN_IF_ERROR(
      map(&params.q, "q", t.q, packed_q, p.batch, params.total_q, p.heads, p.head_dim, 64, kGrouped));
  TESSERA_RETURN_IF_ERROR(map(&params.k, "k", t.k, packed_k && !paged, k_batches, k_rows, p.kv_heads,
                              p.head_dim, params.box_rows));
  TESSERA_RETURN_IF_ERROR(map(&params.v, "v", t.v, packed_k && !paged, k_batches, k_rows, p.kv_heads,
                              p.v_head_dim, params.box_rows));
  const Strided<const void*> o{t.o.data, t.o.batch_stride, t.o.row_stride, t.o.head_stride};
  TESSERA_RETURN_IF_ERROR(
      map(&params.o, "o", o, packed_q, p.batch, params.total_q, p.heads, p.v_head_dim, 64, kGrouped));
  params.lse = t.lse;
  params.lse_head_stride = params.total_q;
  params.lse_batch_stride = packed_q ? 0 : int64_t{p.heads} * p.seqlen_q;
  params.seqlen_q = static_cast<int32_t>(p.seqlen_q);
  params.seqlen_k = static_cast<int32_t>(p.seqlen_k);
  params.cu_seqlens_q = p.cu_seqlens_q;
  params.cu_seqlens_k = paged ? nullptr : p.cu_seqlens_k;
  params.seqused_k = p.seqused_k;
  params.added = static_cast<int32_t>(pages.added);
  params.leftpad_k = p.leftpad_k;
  params.block_table = pages.table;
  params.table_stride = static_cast<int32_t>(pages.table_stride);
  params.pages = static_cast<int32_t>(pages.pages);
  params.page = Division(static_cast<uint32_t>(std::max<int64_t>(pages.page, 1)));
  params.o_data = t.o.data;
  params.o_batch_stride = packed_q ? 0 : t.o.batch_stride;
  params.o_row_stride = t.o.row_stride;
  params.o_head_stride = t.o.head_stride;
  params.v_head_dim = p.v_head_dim;
  const auto window = [](int64_t w) { return w < 0 || w > kNoWindow ? kNoWindow : static_cast<int32_t>(w); };
  params.window_left = window(p.mask.window_left);
  params.window_right = p.mask.causal ? 0 : window(p.mask.window_right);
  params.scale_log2 = p.scale * 1.4426950408889634f;
  // A tile's head is a query head, or a whole group of as many times the rows.
  const int64_t rows_of_head = kGrouped ? packed_rows(p.seqlen_q, group) : p.seqlen_q;
  const int heads_of_batch = kGrouped ? p.kv_heads : p.heads;
  const auto m_blocks = static_cast<uint32_t>((rows_of_head + C::kRows - 1) / C::kRows);
  const auto heads = static_cast<uint32_t>(p.batch * heads_of_batch);
  params.total_heads = static_cast<int32_t>(heads);
  params.tiles = static_cast<int32_t>(heads * m_blocks);
  params.m_blocks = Division(m_blocks);
  params.heads = Division(static_cast<uint32_t>(heads_of_batch));
  params.group = Division(static_cast<uint32_t>(group));
  params.positions = Division(static_cast<uint32_t>(std::max(1, 64 / group)));
  params.position_of = (65536 + group - 1) / group;
  const int64_t head_bytes = std::max<int64_t>(1, p.seqlen_k * C::D * 2 * 2);
  const auto section = static_cast<uint32_t>(
      std::min<int64_t>(heads, std::max<int64_t>(1, kSectionBytes / head_bytes) * (kGrouped ? 1 : group)));
  params.section_heads = Division(section);
  params.section_tiles = Division(section * m_blocks);
  params.next_tile = nullptr;
  if constexpr (C::kDynamic) {
    TESSERA_ASSIGN_OR_RETURN(void* const counter,
                             launch.workspace.get(kCounterSlot, sizeof(int32_t), launch.stream));
    params.next_tile = static_cast<int32_t*>(counter);
  }
  if constexpr (C::kForm == Form::general) {
    params.features = make_features(p);
    params.seen = nullptr;
    if (params.features.tree_keys > 0) params.window_left = params.window_right = kNoWindow;
    if (params.features.holes()) {
      const size_t bytes = static_cast<size_t>(p.batch * p.kv_heads * p.seqlen_k);
      TESSERA_ASSIGN_OR_RETURN(void* const seen, launch.workspace.get(kSeenKeysSlot, bytes, launch.stream));
      params.seen = static_cast<const uint8_t*>(seen);
      TESSERA_RETURN_IF_ERROR(mark_seen_keys(launch, params.features, static_cast<int>(p.batch), p.heads,
                                             p.kv_heads, static_cast<uint8_t*>(seen)));
    }
  }
  return launch_prefill<C>(launch.stream, std::min(params.tiles, launch.device.multiprocessors), params);
}

template <template <typename, Sight, Form> class Config, typename T>
Status run_form(Launch& launch, const AttentionProblem& p, const ForwardTensors& t, const PageTable& pages,
                bool packs) {
  const Mask& mask = p.mask;
  const bool window = mask.window_left >= 0 || (!mask.causal && mask.window_right >= 0);
  if (packs && window) return run<Config<T, Sight::window, Form::grouped>>(launch, p, t, pages);
  if (packs && mask.causal) return run<Config<T, Sight::causal, Form::grouped>>(launch, p, t, pages);
  if (packs) return run<Config<T, Sight::full, Form::grouped>>(launch, p, t, pages);
  // Also where warpgroups of a head's only tile have no rows: the ragged form's do nothing then.
  const bool ragged = p.cu_seqlens_q != nullptr || p.seqused_k != nullptr || p.leftpad_k != nullptr ||
                      pages.table != nullptr ||
                      p.seqlen_q <= Config<T, Sight::full, Form::ragged>::kRows - 64;
  if (ragged && window) return run<Config<T, Sight::window, Form::ragged>>(launch, p, t, pages);
  if (ragged && mask.causal) return run<Config<T, Sight::causal, Form::ragged>>(launch, p, t, pages);
  if (ragged) return run<Config<T, Sight::full, Form::ragged>>(launch, p, t, pages);
  if (window) return run<Config<T, Sight::window, Form::dense>>(launch, p, t, pages);
  if (mask.causal) return run<Config<T, Sight::causal, Form::dense>>(launch, p, t, pages);
  return run<Config<T, Sight::full, Form::dense>>(launch, p, t, pages);
}

// More than intervals and products decides.
bool is_general(const AttentionProblem& p) {
  return p.softcap != 0.0f || p.alibi_slopes != nullptr || p.mask.tensor.kind != MaskKind::none ||
         p.mask.ancestors.tree_keys != 0 || p.dropout.p != 0.0f || !(p.scale > 0.0f);
}

template <typename T>
Status run_variant(Launch& launch, const AttentionProblem& p, const ForwardTensors& t, const PageTable& pages,
                   PrefillVariant variant, bool packs) {
  if (is_general(p)) {
    const int dim = std::max(p.head_dim, p.v_head_dim);
    if (dim > 128) return run<D256General<T, Sight::window, Form::general>>(launch, p, t, pages);
    if (dim > 64) return run<D128General<T, Sight::window, Form::general>>(launch, p, t, pages);
    return run<D64General<T, Sight::window, Form::general>>(launch, p, t, pages);
  }
  switch (variant) {
    case PrefillVariant::d64_four_by_64:
      return run_form<D64FourBy64, T>(launch, p, t, pages, packs);
    case PrefillVariant::d64_three_by_128:
      return run_form<D64ThreeBy128, T>(launch, p, t, pages, packs);
    case PrefillVariant::d96_two_by_128:
      return run_form<D96TwoBy128, T>(launch, p, t, pages, packs);
    case PrefillVariant::d256_two_by_80:
      return run_form<D256TwoBy80, T>(launch, p, t, pages, packs);
    case PrefillVariant::d256_two_by_64_registers:
      return run_form<D256TwoBy64Registers, T>(launch, p, t, pages, packs);
    default:
      return run_form<D128TwoBy128, T>(launch, p, t, pages, packs);
  }
}

}  // namespace

Status prefill_supports(const AttentionProblem& p, const PageTable& pages) {
  const auto no = [](const char* field, const std::string& message) { return unsupported(message, field); };
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return no("dtype", "sm90 prefill takes bf16 and f16");
  if (p.seqlen_k == 0 && pages.table == nullptr) return no("seqlen_k", "sm90 prefill takes at least one key");
  if ((pages.table != nullptr || pages.added != 0) &&
      (p.mask.tensor.kind != MaskKind::none || p.mask.ancestors.tree_keys != 0)) {
    return no("mask", "sm90 prefill takes pages and added keys without mask tensors and ancestors");
  }
  if (pages.table != nullptr && pages.page < p.seqlen_k && (pages.page < 8 || pages.page % 8 != 0)) {
    return no("block_size", format("sm90 prefill takes pages of a multiple of 8 keys, not {}", pages.page));
  }
  return {};
}

Status prefill(Launch& launch, const AttentionProblem& p, const ForwardTensors& t, const PageTable& pages,
               const PrefillTuning& tuning) {
  TESSERA_RETURN_IF_ERROR(prefill_supports(p, pages));
  const int64_t rows = p.cu_seqlens_q != nullptr ? p.total_q : p.batch * p.seqlen_q;
  if (rows == 0) return {};
  if (tuning.groups == GroupTiles::packed && (is_general(p) || !can_pack(p.heads, p.kv_heads))) {
    return unsupported(
        format("kv_heads={}: groups of {} heads do not pack into 64 rows", p.kv_heads, p.heads / p.kv_heads),
        "kv_heads");
  }
  const PrefillVariant variant = tuning.variant == PrefillVariant::automatic ? chosen(p) : tuning.variant;
  const bool packs = prefill_packs(p, launch.device.multiprocessors, tuning);
  return p.dtype == DType::f16 ? run_variant<__half>(launch, p, t, pages, variant, packs)
                               : run_variant<__nv_bfloat16>(launch, p, t, pages, variant, packs);
}

bool prefill_packs(const AttentionProblem& p, int multiprocessors, const PrefillTuning& tuning) {
  if (tuning.groups != GroupTiles::automatic) return tuning.groups == GroupTiles::packed;
  const PrefillVariant variant = tuning.variant == PrefillVariant::automatic ? chosen(p) : tuning.variant;
  return !is_general(p) &&
         packing_pays(p.batch, p.seqlen_q, p.heads, p.kv_heads, rows_of(variant), multiprocessors);
}

}  // namespace tessera::attention::cuda::sm90
