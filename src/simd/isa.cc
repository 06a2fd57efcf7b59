#include "simd/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>
#include <string>

namespace tessera::simd {
namespace {
constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};

std::string supported_names() {
  std::string names;
  for (Isa isa : supported_isas()) names += (names.empty() ? "" : ", ") + std::string(name(isa));
  return names;
}

#if defined(__x86_64__)
// clang 14's __builtin_cpu_supports does not know f16c. That the system keeps the wide registers is seen by
// avx2. Asked once: on a virtual machine CPUID leaves it, which takes longer than attention over a short
// sequence.
bool cpu_has_f16c() {
  static const bool has = [] {
    unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  }();
  return has;
}

#if !defined(TESSERA_EMULATE_AMX)
// A process must ask before it may touch the tile registers' data (8 KiB of state a thread). Asked once; what
// is granted stays, and costs nothing to threads that use no tiles.
bool system_grants_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // its bit in XCR0
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  static const bool has = [] {
    unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned int kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    const bool announced = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmxBf16) != 0 &&
                           (edx & kAmxTile) != 0;
    return announced && system_grants_tiles();
  }();
  return has;
}
#else
bool has_amx() {
  return true;
}
#endif
#endif
}  // namespace

const char* name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

Result<Isa> parse_isa(const char* text) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(kNames[i], text) == 0) return static_cast<Isa>(i);
  }
  return invalid_argument(
      "TESSERA_ISA='" + std::string(text) + "' is unknown; known: scalar, avx2, avx512, avx512bf16, amx",
      "TESSERA_ISA");
}

bool supported(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c() &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return avx512 && __builtin_cpu_supports("avx512bf16") && has_amx();
  }
  return false;
#else
  return isa == Isa::scalar;
#endif
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i < kIsaCount; ++i) {
    if (supported(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
  }
  return isas;
}

Isa fastest_isa() {
#if defined(__x86_64__)
#if defined(TESSERA_EMULATE_AMX)
  if (supported(Isa::avx512bf16)) return Isa::avx512bf16;  // the emulation is for tests that name it
#endif
  if (supported(Isa::avx512bf16) && !supported(Isa::amx) && __builtin_cpu_is("intel")) return Isa::avx512;
#endif
  return supported_isas().back();
}

Result<Isa> requested_isa() {
  const char* text = std::getenv("TESSERA_ISA");
  if (text == nullptr || *text == '\0') return fastest_isa();
  TESSERA_ASSIGN_OR_RETURN(const Isa isa, parse_isa(text));
  if (!supported(isa)) {
    return unsupported("TESSERA_ISA=" + std::string(text) + ": this machine has only " + supported_names(),
                       "TESSERA_ISA");
  }
  return isa;
}

std::string why_not(Isa isa, Isa limit) {
  if (!supported(isa)) return std::string("this machine has no ") + name(isa);
  const char* text = std::getenv("TESSERA_ISA");
  if (text != nullptr && *text != '\0') {
    return std::string("TESSERA_ISA=") + name(limit) + " forbids " + name(isa);
  }
  return std::string("its dot product is slower than f32 FMA on this CPU; TESSERA_ISA=") + name(isa) +
         " takes it all the same";
}

}  // namespace tessera::simd
