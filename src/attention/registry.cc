#include "attention/registry.h"

#include "attention/backward_registry.h"
#include "attention/cpu/kernels.h"
#include "attention/explain.h"
#include "core/format.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kAllKinds = 1 | 2 | 4 | 8;

const KernelDescriptor kKernels[] = {
    {&kFlashF32_scalar, simd::Isa::scalar, DType::f32, 8, 256, kPagedFeatures, kDenseFeatures, kAllKinds},
    {&kFlashBf16_scalar, simd::Isa::scalar, DType::bf16, 8, 256, kPagedFeatures, kDenseFeatures, kAllKinds},
    {&kFlashF32_avx2, simd::Isa::avx2, DType::f32, 8, 256, kPagedFeatures, kDenseFeatures, kAllKinds},
    {&kFlashBf16_avx2, simd::Isa::avx2, DType::bf16, 8, 256, kPagedFeatures, kDenseFeatures, kAllKinds},
    {&kFlashF32_avx512, simd::Isa::avx512, DType::f32, 8, 256, kPagedFeatures, kDenseFeatures, kAllKinds},
    {&kFlashBf16_avx512, simd::Isa::avx512, DType::bf16, 8, 256, kPagedFeatures, kDenseFeatures, kAllKinds},
    {&kFlashBf16_avx512bf16, simd::Isa::avx512bf16, DType::bf16, 8, 256, kPagedFeatures, kDenseFeatures,
     kAllKinds},
    {&kFlashBf16_amx, simd::Isa::amx, DType::bf16, 8, 256, kPagedFeatures, kDenseFeatures, kAllKinds},
};

const char* word(Kind kind) {
  switch (kind) {
    case Kind::prefill:
      return "prefill";
    case Kind::decode:
      return "decode";
    case Kind::tree:
      return "tree";
    case Kind::dense:
      return "dense tensors";
  }
  return "";
}

struct Feature {
  uint32_t bit;
  const char *name, *field;
};
constexpr Feature kFeatures[] = {
    {kCausal, "a causal mask", "causal"},   {kWindow, "a window", "window_left"},
    {kSoftcap, "a soft cap", "softcap"},    {kAlibi, "ALiBi", "alibi_slopes"},
    {kMaskTensor, "a mask tensor", "mask"}, {kAncestors, "an ancestor mask", "ancestors"},
    {kDropout, "dropout", "dropout"},       {kVarlen, "cu_seqlens or seqused_k", "cu_seqlens_q"},
    {kLeftpad, "leftpad_k", "leftpad_k"},
};

uint32_t features_of(const KernelDescriptor& kernel, Kind kind) {
  return kind == Kind::dense ? kernel.dense_features : kernel.features;
}

// Why the kernel cannot take the problem, or empty.
std::string refusal(const KernelDescriptor& kernel, const AttentionProblem& problem, Kind kind,
                    simd::Isa isa) {
  const DType dtype = kind == Kind::dense ? tile_dtype(problem.dtype) : problem.dtype;
  if (kernel.dtype != dtype) {
    return dtype == problem.dtype
               ? format("dtype is {}, the kernel reads {}", name(dtype), name(kernel.dtype))
               : format("dtype {} is widened to {}, the kernel reads {}", name(problem.dtype), name(dtype),
                        name(kernel.dtype));
  }
  if (kernel.isa > isa) {
    return simd::why_not(kernel.isa, isa);
  }
  for (const auto& [dim, field] :
       {std::pair{problem.head_dim, "head_dim"}, {problem.v_head_dim, "v_head_dim"}}) {
    if (dim < kernel.least_head_dim || dim > kernel.most_head_dim || dim % 8 != 0) {
      return format("{}={} is not a multiple of 8 from {} to {}", field, dim, kernel.least_head_dim,
                    kernel.most_head_dim);
    }
  }
  if (const uint32_t lacking = wanted_features(problem) & ~features_of(kernel, kind); lacking != 0) {
    return format("it has no form of {} for {}", feature_names(lacking), word(kind));
  }
  if ((static_cast<uint32_t>(kind) & kernel.kinds) == 0) return format("it has no {} form", word(kind));
  return {};
}

}  // namespace

std::span<const KernelDescriptor> kernels() {
  return kKernels;
}

uint32_t wanted_features(const AttentionProblem& problem) {
  uint32_t features = problem.mask.causal ? kCausal : 0;
  if (problem.mask.window_left >= 0 || problem.mask.window_right >= 0) features |= kWindow;
  if (problem.softcap > 0) features |= kSoftcap;
  if (problem.alibi_slopes != nullptr) features |= kAlibi;
  if (problem.mask.tensor.kind != MaskKind::none) features |= kMaskTensor;
  if (problem.mask.ancestors.tree_keys > 0) features |= kAncestors;
  if (problem.dropout.p > 0) features |= kDropout;
  if (problem.cu_seqlens_q != nullptr || problem.seqused_k != nullptr) features |= kVarlen;
  if (problem.leftpad_k != nullptr) features |= kLeftpad;
  return features;
}

std::string feature_names(uint32_t features) {
  std::string names;
  for (const Feature& feature : kFeatures) {
    if ((features & feature.bit) != 0) names += format("{}{}", names.empty() ? "" : ", ", feature.name);
  }
  return names;
}

Result<const TileKernel*> find(const AttentionProblem& problem, Kind kind) {
  TESSERA_RETURN_IF_ERROR(validate(problem));
  TESSERA_ASSIGN_OR_RETURN(const simd::Isa isa, simd::requested_isa());
  for (size_t i = std::size(kKernels); i-- > 0;) {
    if (refusal(kKernels[i], problem, kind, isa).empty()) return kKernels[i].kernel;
  }
  for (const Feature& feature : kFeatures) {
    if ((wanted_features(problem) & feature.bit) == 0) continue;
    bool known = false;
    for (const KernelDescriptor& kernel : kKernels) known |= (features_of(kernel, kind) & feature.bit) != 0;
    if (!known)
      return unsupported(format("no kernel has {} for {}", feature.name, word(kind)), feature.field);
  }
  return unsupported(
      format("no kernel reads dtype {} for {}; use f32 or bf16", name(problem.dtype), word(kind)), "dtype");
}

std::string explain(const AttentionProblem& problem, Kind kind) {
  return explain_table(
      problem, std::size(kKernels), format("taken for {}", word(kind)),
      [](size_t i) -> const KernelDescriptor& { return kKernels[i]; },
      [](const KernelDescriptor& kernel) { return kernel.kernel->name; },
      [&](const KernelDescriptor& kernel, simd::Isa isa) { return refusal(kernel, problem, kind, isa); });
}

std::string explain(const AttentionProblem& problem, Pass pass) {
  if (pass == Pass::forward) return explain(problem, Kind::dense);
  return explain_backward(problem);
}

}  // namespace tessera::attention
