// Which instruction set the kernels use. Never anything that CPUID does not announce.
#pragma once

#include <string>
#include <vector>

#include "tessera/status.h"

namespace tessera::simd {

// In rising order. avx2 means AVX2+FMA+F16C; avx512 means F+BW+VL+DQ+VNNI; avx512bf16 adds AVX512_BF16; amx
// adds AMX_TILE and AMX_BF16, with the system's leave to use them.
enum class Isa : int { scalar, avx2, avx512, avx512bf16, amx };
inline constexpr int kIsaCount = 5;

const char* name(Isa isa);
Result<Isa> parse_isa(const char* text);
bool supported(Isa isa);            // by this machine
std::vector<Isa> supported_isas();  // rising

// The best supported one whose own instructions are fast here. AVX512_BF16 is announced by Intel's CPUs too,
// but its dot product multiplies at half the rate of f32 FMA there (and at twice that rate on AMD's), so
// those without AMX get avx512. By the vendor and not by a measurement: the level decides bits, and they must
// be the same each time.
Isa fastest_isa();
// TESSERA_ISA if it is set, else fastest_isa(). An unknown or unsupported name is an error that lists what
// this machine has.
Result<Isa> requested_isa();
// Why a kernel for `isa` is not for a caller whose requested_isa() is the lower `limit`; one line.
std::string why_not(Isa isa, Isa limit);

}  // namespace tessera::simd
