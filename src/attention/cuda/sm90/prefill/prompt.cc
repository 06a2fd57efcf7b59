#include "attention/cuda/sm90/prefill/prompt.h"

#include "attention/cuda/common/tma.h"
#include "attention/cuda/sm90/prefill/launch.h"
#include "attention/cuda/steps/append.h"
#include "attention/cuda/steps/launch.h"

namespace tessera::attention::cuda::sm90 {

Status attend_prompt(tessera::cuda::Launch& launch, const AttentionProblem& p, const CacheView& c,
                     const CacheAppend& append, const CacheTensors& t) {
  AttentionProblem problem = p;
  problem.seqused_k = c.seqlens;
  PageTable pages;
  if (c.block_table != nullptr) {
    pages = {c.block_table, steps::table_stride_of(c), c.block_size, c.num_blocks};
    problem.seqlen_k = c.max_blocks * c.block_size;
  } else if (c.cache_batch_idx != nullptr) {
    pages = {c.cache_batch_idx, 1, c.block_size, c.num_blocks};
    problem.seqlen_k = c.block_size;
  } else {
    problem.seqlen_k = c.block_size;
  }
  if (c.seqlens == nullptr) {
    problem.seqlen_k = c.seqlen + append.seqlen;
  } else {
    pages.added = append.seqlen;
  }
  TESSERA_RETURN_IF_ERROR(prefill_supports(problem, pages));
  // All that prefill() could refuse once the new rows are written.
  TESSERA_RETURN_IF_ERROR(check_mappable("k_cache", steps::read_only(c.k)));
  TESSERA_RETURN_IF_ERROR(check_mappable("v_cache", steps::read_only(c.v)));
  TESSERA_RETURN_IF_ERROR(check_mappable("q", t.q));
  TESSERA_RETURN_IF_ERROR(check_mappable("o", steps::read_only(t.o)));
  Strided<const void*> q = t.q;
  if (append.seqlen > 0) {
    steps::TokenRows<const void> turned{q.data, q.batch_stride, q.row_stride, q.head_stride};
    TESSERA_RETURN_IF_ERROR(steps::write_new_rows(launch, p, c, append, turned));
    q = {turned.data, turned.batch_stride, turned.row_stride, turned.head_stride};
  }
  return prefill(launch, problem, {q, steps::read_only(c.k), steps::read_only(c.v), t.o, t.lse}, pages);
}

}  // namespace tessera::attention::cuda::sm90
