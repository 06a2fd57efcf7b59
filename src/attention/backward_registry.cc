#include "attention/backward_registry.h"

#include "attention/cpu/backward_kernels.h"
#include "attention/explain.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

const BackwardKernel* const kKernels[] = {&kBackwardF32_scalar, &kBackwardF32_avx2, &kBackwardF32_avx512,
                                          &kBackwardPairs_avx512bf16};

// Why the kernel cannot take the problem, or empty.
std::string refusal(const BackwardKernel& kernel, const AttentionProblem& problem, simd::Isa isa) {
  if ((kernel.dtypes >> static_cast<int>(problem.dtype) & 1) == 0) {
    return format("it does not read {}", name(problem.dtype));
  }
  if (kernel.isa > isa) {
    return simd::why_not(kernel.isa, isa);
  }
  if (problem.mask.ancestors.tree_keys > 0) return "it has no ancestor masks";
  return {};
}

}  // namespace

std::span<const BackwardKernel* const> backward_kernels() {
  return kKernels;
}

Result<const BackwardKernel*> find_backward(const AttentionProblem& problem) {
  TESSERA_RETURN_IF_ERROR(validate(problem));
  TESSERA_ASSIGN_OR_RETURN(const simd::Isa isa, simd::requested_isa());
  if (problem.mask.ancestors.tree_keys > 0) {
    return unsupported("backward has no kernel for ancestor masks; pass tree_keys=0", "ancestors");
  }
  for (size_t i = std::size(kKernels); i-- > 0;) {
    if (refusal(*kKernels[i], problem, isa).empty()) return kKernels[i];
  }
  return unsupported(format("no backward kernel reads dtype {}", name(problem.dtype)), "dtype");
}

std::string explain_backward(const AttentionProblem& problem) {
  return explain_table(
      problem, std::size(kKernels), "taken", [](size_t i) -> const BackwardKernel& { return *kKernels[i]; },
      [](const BackwardKernel& kernel) { return kernel.name; },
      [&](const BackwardKernel& kernel, simd::Isa isa) { return refusal(kernel, problem, isa); });
}

}  // namespace tessera::attention
