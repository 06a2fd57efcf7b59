// Attention of a decode step over the prefix tree of its sequences (ChunkAttention, Ye et al. 2024): what
// several sequences share is read once for all of them, in the same persistent kernel as what each has of its
// own; one more kernel folds. The kernels are sm_90's on sm_90, sm_80's elsewhere. See steps/plan.h for how a
// step is divided, steps/work.h for why the bits do not depend on it.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "attention/cuda/steps/plan.h"
#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/paged.h"
#include "tessera/status.h"

namespace tessera::attention::cuda::steps {

// A plan for one step's block tables, used for every layer. Made on the host from the host's copy of the
// tables and lengths; it stays valid, in a captured graph too, while tables keep their blocks and lengths
// stay within limits(): a sequence outside them gets NaN.
class TreePlan {
 public:
  // `problem`: what decode() takes, with one query token a sequence. Copies the plan to the device on
  // launch.stream. Errors: as decode()'s.
  static Result<TreePlan> create(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                                 std::span<const TreeSequence> sequences, int64_t block_size,
                                 TreePlanOptions options = {});
  const AttentionProblem& problem() const { return problem_; }

  // decode() of the plan's sequences, in their order: cache.block_table holds on the device what `sequences`
  // held on the host, cache.seqlens (or seqlen) the lengths now. With nothing worth sharing it is decode().
  Status attend(tessera::cuda::Launch& launch, const CacheView& cache, const CacheAppend& append,
                const CacheTensors& tensors) const;

  // Of a sequence's keys, those of the call included; a table's end is a limit of its own.
  KeyLimits limits(int64_t sequence) const {
    return work_.limits.empty() ? KeyLimits{} : work_.limits[static_cast<size_t>(sequence)];
  }
  bool shares() const { return work_.shares; }
  TreeReads reads() const { return work_.reads; }
  std::string explain() const { return work_.explanation; }

 private:
  AttentionProblem problem_;
  bool on_hopper_ = false;
  TreePlanOptions options_;
  TreeWork work_;
  std::shared_ptr<tessera::cuda::DeviceBuffer> memory_;  // pieces, tokens, partials, entries
};

}  // namespace tessera::attention::cuda::steps
