// Which instruction set the kernels use. Never anything that CPUID does not announce.
#pragma once

#include <vector>

#include "tessera/status.h"

namespace tessera::simd {

// In rising order. avx2 means AVX2+FMA+F16C; avx512 means F+BW+VL+DQ+VNNI; avx512bf16 adds AVX512_BF16.
enum class Isa : int { scalar, avx2, avx512, avx512bf16 };
inline constexpr int kIsaCount = 4;

const char* name(Isa isa);
Result<Isa> parse_isa(const char* text);
bool supported(Isa isa);            // by this machine
std::vector<Isa> supported_isas();  // rising

// TESSERA_ISA if it is set, else the best supported. An unknown or unsupported name is an error that lists
// what this machine has.
Result<Isa> requested_isa();

}  // namespace tessera::simd
