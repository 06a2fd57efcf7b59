// How a table of kernels explains itself.
#pragma once

#include <string>

#include "attention/problem.h"
#include "core/format.h"
#include "simd/isa.h"

namespace tessera::attention {

// One line a kernel, best first: its name, and `taken` or why not. The taken one begins with "> ". kernel(i)
// is the i-th (best last); name(kernel); refusal(kernel, isa): empty when it can take the problem.
template <typename Kernel, typename Name, typename Refusal>
std::string explain_table(const AttentionProblem& problem, size_t count, const std::string& taken,
                          Kernel&& kernel, Name&& name_of, Refusal&& refusal) {
  const Result<simd::Isa> isa = simd::requested_isa();
  if (!isa.ok()) return isa.status().message() + "\n";
  std::string lines;
  bool found = false;
  for (size_t i = count; i-- > 0;) {
    std::string why = refusal(kernel(i), *isa);
    const bool best = why.empty() && !found;
    if (why.empty()) why = best ? taken : "would do, but a kernel for a better ISA is there";
    found |= best;
    lines += format("{}{}: {}\n", best ? "> " : "  ", name_of(kernel(i)), why);
  }
  if (const Status status = validate(problem); !status.ok()) lines += status.message() + "\n";
  return lines;
}

}  // namespace tessera::attention
