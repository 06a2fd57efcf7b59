// Which backward kernels there are, which one a problem gets, and why.
#pragma once

#include <span>
#include <string>

#include "attention/cpu/backward_kernel.h"
#include "attention/problem.h"
#include "tessera/status.h"

namespace tessera::attention {

// Every backward kernel of this build, best last.
std::span<const BackwardKernel* const> backward_kernels();

// The best kernel for the problem among the ISAs up to simd::requested_isa(). Errors: what validate()
// refuses; `unsupported` that names the field: dtype, ancestors, or a TESSERA_ISA that this machine lacks.
Result<const BackwardKernel*> find_backward(const AttentionProblem& problem);

// One line a kernel, in the form of explain(problem, pass).
std::string explain_backward(const AttentionProblem& problem);

}  // namespace tessera::attention
