#include "attention/backward_registry.h"

#include "attention/cpu/backward_kernels.h"
#include "attention/explain.h"
#include "attention/registry.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

const BackwardKernel* const kKernels[] = {&kBackwardF32_scalar, &kBackwardF32_avx2, &kBackwardF32_avx512,
                                          &kBackwardPairs_avx512bf16, &kBackward_amx};

// Why the kernel cannot take the problem, or empty.
std::string refusal(const BackwardKernel& kernel, const AttentionProblem& problem, simd::Isa isa) {
  if ((kernel.dtypes >> static_cast<int>(problem.dtype) & 1) == 0) {
    return format("it does not read {}", name(problem.dtype));
  }
  if (kernel.isa > isa) {
    return simd::why_not(kernel.isa, isa);
  }
  // CPUs with AMX have AVX512_BF16 too, at half the rate of f32 FMA (docs/decisions/isa-levels.md).
  if (kernel.isa == simd::Isa::avx512bf16 && isa == simd::Isa::amx) {
    return "its dot product is slower than f32 FMA on CPUs with AMX";
  }
  if (problem.mask.ancestors.tree_keys > 0) return "it has no ancestor masks";
  constexpr uint32_t kBeyondPlain = kSoftcap | kAlibi | kMaskTensor | kDropout;
  if (const uint32_t lacking = wanted_features(problem) & kBeyondPlain; kernel.plain_only && lacking != 0) {
    return format("it has no form of {}", feature_names(lacking));
  }
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
