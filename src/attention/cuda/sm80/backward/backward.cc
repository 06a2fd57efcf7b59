#include "attention/cuda/sm80/backward/backward.h"

#include <algorithm>

#include "attention/cuda/common/seen_keys.h"
#include "attention/cuda/common/slots.h"
#include "attention/cuda/sm80/backward/launch.h"
#include "attention/cuda/sm80/checks.h"

namespace tessera::attention::cuda::sm80 {
namespace {

struct Variant {
  int (*resident)(int);
  void (*launch)(const BackwardParams&, void*);
  BackwardConfig config;
  int64_t shared_bytes;
};

template <DType kType, int kDim, BackwardTiles kTiles>
Variant variant() {
  constexpr BackwardConfig kConfig = backward_config(kType, kDim, kTiles);
  constexpr int kElement = kType == DType::f32 ? 4 : 2;
  return {resident_backward<kType, kDim, kTiles>, launch_backward<kType, kDim, kTiles>, kConfig,
          kConfig.shared_bytes(kDim * kElement + 16, kConfig.keys * kElement + 16)};
}

template <DType kType, BackwardTiles kTiles>
Variant variant_of(int dim) {
  constexpr bool kSmall = kTiles == BackwardTiles::small;
  if constexpr (!kSmall) {
    if (dim == 64) return variant<kType, 64, kTiles>();
  }
  if (dim == 96) return variant<kType, 96, kTiles>();
  if constexpr (!kSmall || kType != DType::f32) {
    if (dim == 192) return variant<kType, 192, kTiles>();
    if (dim == 256) return variant<kType, 256, kTiles>();
  }
  return variant<kType, 128, kTiles>();
}

Variant variant_of(DType type, int dim, BackwardTiles tiles) {
  const auto of = [&]<DType kType>() {
    if (tiles == BackwardTiles::small) return variant_of<kType, BackwardTiles::small>(dim);
    if constexpr (kType != DType::f32) {
      if (tiles == BackwardTiles::plain) return variant_of<kType, BackwardTiles::plain>(dim);
    }
    return variant_of<kType, BackwardTiles::general>(dim);
  };
  return type == DType::f32   ? of.operator()<DType::f32>()
         : type == DType::f16 ? of.operator()<DType::f16>()
                              : of.operator()<DType::bf16>();
}

// The first that fits the device: the plain tiles where no feature asks for more, the general, the small.
Variant choose(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p) {
  const int dim = dim_class(p.head_dim, p.v_head_dim);
  if (!make_features(p).general()) {
    const Variant plain = variant_of(p.dtype, dim, BackwardTiles::plain);
    if (plain.shared_bytes <= device.shared_bytes) return plain;
  }
  const Variant general = variant_of(p.dtype, dim, BackwardTiles::general);
  if (general.shared_bytes <= device.shared_bytes || !has_small_tiles(p.dtype, dim)) return general;
  return variant_of(p.dtype, dim, BackwardTiles::small);
}

int64_t tiles_of(int64_t length, int tile) {
  return (length + tile - 1) / tile;
}

Status check_tensors(const AttentionProblem& p, const BackwardTensors& t) {
  TESSERA_RETURN_IF_ERROR(check_aligned("q", t.q, p, p.seqlen_q, p.heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("k", t.k, p, p.seqlen_k, p.kv_heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("v", t.v, p, p.seqlen_k, p.kv_heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("o", t.o, p, p.seqlen_q, p.heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("dout", t.dout, p, p.seqlen_q, p.heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("dq", t.dq, p, p.seqlen_q, p.heads));
  TESSERA_RETURN_IF_ERROR(check_aligned("dk", t.dk, p, p.seqlen_k, p.kv_heads));
  return check_aligned("dv", t.dv, p, p.seqlen_k, p.kv_heads);
}

void set_tensors(const BackwardTensors& t, BackwardParams* p) {
  p->q = t.q.data, p->k = t.k.data, p->v = t.v.data, p->o = t.o.data, p->dout = t.dout.data;
  p->dq = t.dq.data, p->dk = t.dk.data, p->dv = t.dv.data, p->lse = t.lse;
  p->q_batch = t.q.batch_stride, p->q_row = t.q.row_stride, p->q_head = t.q.head_stride;
  p->k_batch = t.k.batch_stride, p->k_row = t.k.row_stride, p->k_head = t.k.head_stride;
  p->v_batch = t.v.batch_stride, p->v_row = t.v.row_stride, p->v_head = t.v.head_stride;
  p->o_batch = t.o.batch_stride, p->o_row = t.o.row_stride, p->o_head = t.o.head_stride;
  p->dout_batch = t.dout.batch_stride, p->dout_row = t.dout.row_stride, p->dout_head = t.dout.head_stride;
  p->dq_batch = t.dq.batch_stride, p->dq_row = t.dq.row_stride, p->dq_head = t.dq.head_stride;
  p->dk_batch = t.dk.batch_stride, p->dk_row = t.dk.row_stride, p->dk_head = t.dk.head_stride;
  p->dv_batch = t.dv.batch_stride, p->dv_row = t.dv.row_stride, p->dv_head = t.dv.head_stride;
}

Status set_workspace(tessera::cuda::Launch& launch, int64_t tiles, int rows, int dim, BackwardParams* p) {
  const size_t padded = static_cast<size_t>(tiles * rows);
  TESSERA_ASSIGN_OR_RETURN(
      void* sums, launch.workspace.get(kSumsSlot, padded * static_cast<size_t>(dim) * 4, launch.stream));
  // The statistics first: they are copied 16 bytes at a time.
  TESSERA_ASSIGN_OR_RETURN(
      void* words,
      launch.workspace.get(kRowSumsSlot, padded * 9 + (static_cast<size_t>(tiles) + 1) * 4, launch.stream));
  p->dq_sums = static_cast<float*>(sums);
  p->lse2 = static_cast<float*>(words);
  p->delta = p->lse2 + padded;
  p->ticket = reinterpret_cast<uint32_t*>(p->delta + padded);
  p->visits = p->ticket + 1;
  p->sees = reinterpret_cast<uint8_t*>(p->visits + tiles);
  return {};
}

}  // namespace

Status supports_backward(const tessera::cuda::DeviceProperties& device, const AttentionProblem& p) {
  TESSERA_RETURN_IF_ERROR(check_device(device));
  TESSERA_RETURN_IF_ERROR(check_dims(p));
  if (p.mask.ancestors.tree_keys > 0) {
    return unsupported(format("ancestors.tree_keys={} must be 0 in backward: tree masks are forward only",
                              p.mask.ancestors.tree_keys),
                       "ancestors.tree_keys");
  }
  TESSERA_RETURN_IF_ERROR(check_blocks(
      std::max(p.batch * p.heads * tiles_of(p.seqlen_q, 32), p.batch * p.kv_heads * tiles_of(p.seqlen_k, 32)),
      p));
  return check_shared(device, choose(device, p).shared_bytes, dim_class(p.head_dim, p.v_head_dim));
}

Status backward(tessera::cuda::Launch& launch, const AttentionProblem& p, const BackwardTensors& t) {
  TESSERA_RETURN_IF_ERROR(supports_backward(launch.device, p));
  TESSERA_RETURN_IF_ERROR(check_tensors(p, t));
  if (p.batch == 0 || (p.seqlen_q == 0 && p.seqlen_k == 0)) return {};

  BackwardParams params{};
  params.features = make_features(p);
  const int dim = dim_class(p.head_dim, p.v_head_dim);
  const Variant variant = choose(launch.device, p);
  set_tensors(t, &params);
  params.batch = static_cast<int>(p.batch);
  params.heads = p.heads;
  params.kv_heads = p.kv_heads;
  params.head_dim = p.head_dim;
  params.v_head_dim = p.v_head_dim;
  params.row_tiles = static_cast<int>(tiles_of(p.seqlen_q, variant.config.rows));
  params.key_tiles = static_cast<int>(tiles_of(p.seqlen_k, variant.config.keys));
  const int64_t tiles = p.batch * p.heads * params.row_tiles;
  TESSERA_RETURN_IF_ERROR(set_workspace(launch, tiles, variant.config.rows, dim, &params));
  if (params.features.holes()) {
    const size_t bytes = static_cast<size_t>(p.batch * p.kv_heads * p.seqlen_k);
    TESSERA_ASSIGN_OR_RETURN(void* seen, launch.workspace.get(kSeenKeysSlot, bytes, launch.stream));
    params.seen = static_cast<uint8_t*>(seen);
    TESSERA_RETURN_IF_ERROR(mark_seen_keys(launch, params.features, params.batch, p.heads, p.kv_heads,
                                           static_cast<uint8_t*>(seen)));
  }
  // A power of two, so that one more SM does not change the order of additions.
  const int resident = variant.resident(launch.device.multiprocessors);
  params.together = 1;
  while (params.together * 2 <= resident) params.together *= 2;
  // Causal tiles differ in length. Those of a set of heads begin in the order of their lengths, so that the
  // last are short; more than run at once, so that neighbours, which add to the same rows, begin apart (2 to
  // 6 %); not so many that their rows leave L2. The order of additions is the same for any set.
  const Features& f = params.features;
  const bool round = f.left == kNoWindow && f.right == kNoWindow;
  const int times = (params.key_tiles <= 8 ? 2 : 4) * (dim <= 64 ? 2 : 1);
  params.set_heads = round ? 1 : std::max(1, times * params.together / std::max(1, params.key_tiles));
  variant.launch(params, launch.stream.handle());
  return tessera::cuda::launched("sm80 backward", describe(p));
}

}  // namespace tessera::attention::cuda::sm80
