// The main of every test: refuses to run under an ISA that this machine lacks, visibly.
#include <gtest/gtest.h>

#include <cstdio>

#include "simd/isa.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const tessera::Result<tessera::simd::Isa> isa = tessera::simd::requested_isa();
  if (!isa.ok()) {
    std::printf("SKIPPED: %s\n", isa.status().message().c_str());
    return 77;
  }
  std::printf("isa: %s\n", tessera::simd::name(*isa));
  return RUN_ALL_TESTS();
}
