// The main of every GPU test: skips aloud where there is no device, and says how many tests ran on which.
#include <gtest/gtest.h>

#include <cstdio>

#include "core/cuda/device.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const tessera::Result<tessera::cuda::DeviceProperties> device = tessera::cuda::device_properties(0);
  if (!device.ok()) {
    std::printf("SKIPPED: %s\n", device.status().message().c_str());
    return 77;
  }
  std::printf("device: %s, sm_%d%d, driver %d\n", device->name.c_str(), device->major, device->minor,
              device->driver);
  const int failed = RUN_ALL_TESTS();
  std::printf("GPU tests run: %d\n", ::testing::UnitTest::GetInstance()->test_to_run_count());
  return failed;
}
