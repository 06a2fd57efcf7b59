#include "attention/registry.h"

#include "attention/cpu/kernels.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kAllFeatures = kCausal | kWindow | kSoftcap | kAlibi;
constexpr uint32_t kAllKinds = 1 | 2 | 4;

const KernelDescriptor kKernels[] = {
    {&kFlashF32_scalar, simd::Isa::scalar, DType::f32, 8, 256, kAllFeatures, kAllKinds},
    {&kFlashBf16_scalar, simd::Isa::scalar, DType::bf16, 8, 256, kAllFeatures, kAllKinds},
    {&kFlashF32_avx2, simd::Isa::avx2, DType::f32, 8, 256, kAllFeatures, kAllKinds},
    {&kFlashBf16_avx2, simd::Isa::avx2, DType::bf16, 8, 256, kAllFeatures, kAllKinds},
    {&kFlashF32_avx512, simd::Isa::avx512, DType::f32, 8, 256, kAllFeatures, kAllKinds},
    {&kFlashBf16_avx512, simd::Isa::avx512, DType::bf16, 8, 256, kAllFeatures, kAllKinds},
    {&kFlashBf16_avx512bf16, simd::Isa::avx512bf16, DType::bf16, 8, 256, kAllFeatures, kAllKinds},
};

const char* word(Kind kind) {
  return kind == Kind::prefill ? "prefill" : kind == Kind::decode ? "decode" : "tree";
}

uint32_t wanted_features(const AttentionProblem& problem) {
  uint32_t features = problem.mask.causal ? kCausal : 0;
  if (problem.mask.window_left >= 0 || problem.mask.window_right >= 0) features |= kWindow;
  if (problem.softcap > 0) features |= kSoftcap;
  if (problem.alibi_slopes != nullptr) features |= kAlibi;
  return features;
}

// Why the kernel cannot take the problem, or empty.
std::string refusal(const KernelDescriptor& kernel, const AttentionProblem& problem, Kind kind,
                    simd::Isa isa) {
  if (kernel.dtype != problem.dtype) {
    return format("dtype is {}, the kernel reads {}", name(problem.dtype), name(kernel.dtype));
  }
  if (kernel.isa > isa) {
    return simd::supported(kernel.isa)
               ? format("TESSERA_ISA={} forbids {}", simd::name(isa), simd::name(kernel.isa))
               : format("this machine has no {}", simd::name(kernel.isa));
  }
  for (const auto& [dim, field] :
       {std::pair{problem.head_dim, "head_dim"}, {problem.v_head_dim, "v_head_dim"}}) {
    if (dim < kernel.least_head_dim || dim > kernel.most_head_dim || dim % 8 != 0) {
      return format("{}={} is not a multiple of 8 from {} to {}", field, dim, kernel.least_head_dim,
                    kernel.most_head_dim);
    }
  }
  if ((wanted_features(problem) & ~kernel.features) != 0) return "a feature that it lacks is asked for";
  if ((static_cast<uint32_t>(kind) & kernel.kinds) == 0) return format("it has no {} form", word(kind));
  return {};
}

}  // namespace

std::span<const KernelDescriptor> kernels() {
  return kKernels;
}

Result<const TileKernel*> find(const AttentionProblem& problem, Kind kind) {
  TESSERA_RETURN_IF_ERROR(validate(problem));
  TESSERA_ASSIGN_OR_RETURN(const simd::Isa isa, simd::requested_isa());
  for (size_t i = std::size(kKernels); i-- > 0;) {
    if (refusal(kKernels[i], problem, kind, isa).empty()) return kKernels[i].kernel;
  }
  return unsupported(format("no attention kernel reads dtype {}; use f32 or bf16", name(problem.dtype)),
                     "dtype");
}

std::string explain(const AttentionProblem& problem, Kind kind) {
  const Result<simd::Isa> isa = simd::requested_isa();
  if (!isa.ok()) return isa.status().message();
  std::string lines;
  bool taken = false;
  for (size_t i = std::size(kKernels); i-- > 0;) {
    const KernelDescriptor& kernel = kKernels[i];
    std::string why = refusal(kernel, problem, kind, *isa);
    const bool best = why.empty() && !taken;
    if (why.empty()) {
      why = best ? format("taken for {}", word(kind))
                 : format("would do, but a kernel for a better ISA than {} is there", simd::name(kernel.isa));
    }
    taken |= best;
    lines += format("{}{}: {}\n", best ? "> " : "  ", kernel.kernel->name, why);
  }
  if (const Status status = validate(problem); !status.ok()) lines += status.message() + "\n";
  return lines;
}

}  // namespace tessera::attention
