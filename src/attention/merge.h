// What merge_states asks of its arguments, on every device.
#pragma once

#include <span>

#include "tessera/merge.h"

namespace tessera::attention {

// Errors as merge_states. Nothing behind the pointers is read.
Status check_merge(const MergeProblem& problem, std::span<const AttentionPart> parts,
                   const Strided<void*>& o);

}  // namespace tessera::attention
