// Device memory, streams and graphs behind core/cuda/device.h.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/cuda/device.h"

namespace tessera::cuda {
namespace {

__global__ void add_one(int* values, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) values[i] += 1;
}

Status add_one_on(const Stream& stream, const DeviceBuffer& buffer, int count) {
  add_one<<<(count + 127) / 128, 128, 0, static_cast<cudaStream_t>(stream.handle())>>>(buffer.as<int>(),
                                                                                       count);
  return launched("add_one", "a test");
}

TEST(Device, CopiesFillsAndRunsOnAStream) {
  Result<Launch> launch = Launch::create(0);
  ASSERT_TRUE(launch.ok()) << launch.status().message();
  Result<DeviceBuffer> buffer = DeviceBuffer::create(1000 * sizeof(int), "test");
  ASSERT_TRUE(buffer.ok());
  ASSERT_TRUE(fill_bytes(buffer->data(), 0, buffer->size(), launch->stream).ok());
  ASSERT_TRUE(add_one_on(launch->stream, *buffer, 1000).ok());
  std::vector<int> values(1000);
  ASSERT_TRUE(copy(values.data(), buffer->data(), buffer->size(), launch->stream).ok());
  ASSERT_TRUE(launch->stream.synchronize().ok());
  EXPECT_EQ(values, std::vector<int>(1000, 1));
}

TEST(Device, AGraphReplaysWhatWasCaptured) {
  Result<Launch> launch = Launch::create(0);
  ASSERT_TRUE(launch.ok());
  Result<DeviceBuffer> buffer = DeviceBuffer::create(10 * sizeof(int), "test");
  ASSERT_TRUE(fill_bytes(buffer->data(), 0, buffer->size(), launch->stream).ok());
  Result<Graph> graph = Graph::capture(launch->stream, [&]() -> Status {
    TESSERA_RETURN_IF_ERROR(add_one_on(launch->stream, *buffer, 10));
    return add_one_on(launch->stream, *buffer, 10);
  });
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  for (int replay = 0; replay < 3; ++replay) ASSERT_TRUE(graph->launch(launch->stream).ok());
  std::vector<int> values(10);
  ASSERT_TRUE(copy(values.data(), buffer->data(), buffer->size(), launch->stream).ok());
  ASSERT_TRUE(launch->stream.synchronize().ok());
  EXPECT_EQ(values, std::vector<int>(10, 6));
}

TEST(Device, OutOfMemorySaysNeededAndFreeBytesAndTheProcessGoesOn) {
  const Result<DeviceBuffer> huge = DeviceBuffer::create(size_t{1} << 45, "the test's huge buffer");
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.status().code(), StatusCode::resource_exhausted);
  EXPECT_NE(huge.status().message().find("35184372088832"), std::string::npos) << huge.status().message();
  EXPECT_NE(huge.status().message().find("the test's huge buffer needs"), std::string::npos)
      << huge.status().message();
  EXPECT_NE(huge.status().message().find("bytes are free"), std::string::npos) << huge.status().message();
  EXPECT_EQ(huge.status().message().find('\n'), std::string::npos);
  Result<Launch> launch = Launch::create(0);
  ASSERT_TRUE(launch.ok());
  Result<DeviceBuffer> small = DeviceBuffer::create(64, "small");
  ASSERT_TRUE(small.ok());
  EXPECT_TRUE(add_one_on(launch->stream, *small, 16).ok());
  EXPECT_TRUE(launch->stream.synchronize().ok());
}

TEST(Device, AFailedLaunchNamesTheKernelAndItsProblem) {
  add_one<<<1, 4096>>>(nullptr, 0);  // more threads than a block may have
  const Status status = launched("add_one", "4096 threads");
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("kernel add_one for 4096 threads"), std::string::npos) << status.message();
  EXPECT_TRUE(launched("add_one", "nothing").ok());
}

__global__ void wants_shared(int* values) {
  extern __shared__ int shared[];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  values[threadIdx.x] = shared[threadIdx.x];
}

TEST(Device, TooMuchSharedMemoryIsOneErrorAndNotTheNextLaunchsToo) {
  Result<Launch> launch = Launch::create(0);
  ASSERT_TRUE(launch.ok());
  const int bytes = static_cast<int>(launch->device.shared_bytes) + 1;
  const Status allowed =
      to_status(cudaFuncSetAttribute(wants_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                "shared memory of kernel wants_shared");
  ASSERT_FALSE(allowed.ok());
  EXPECT_NE(allowed.message().find("shared memory of kernel wants_shared"), std::string::npos)
      << allowed.message();
  const auto stream = static_cast<cudaStream_t>(launch->stream.handle());
  wants_shared<<<1, 32, bytes, stream>>>(nullptr);
  const Status refused = launched("wants_shared", "head_dim=512 dtype=f32");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.code(), StatusCode::internal);
  EXPECT_EQ(refused.message().find("kernel wants_shared for head_dim=512 dtype=f32: cudaError"), 0u)
      << refused.message();
  EXPECT_EQ(refused.message().find("earlier"), std::string::npos) << refused.message();
  EXPECT_EQ(refused.message().find('\n'), std::string::npos);
  Result<DeviceBuffer> small = DeviceBuffer::create(64, "small");
  ASSERT_TRUE(small.ok());
  const Status next = add_one_on(launch->stream, *small, 16);
  EXPECT_TRUE(next.ok()) << next.message();
  const Status waited = launch->stream.synchronize();
  EXPECT_TRUE(waited.ok()) << waited.message();
}

// An error that some call gave is that call's alone, whichever it was.
TEST(Device, AFailedCallIsNotReportedByTheNextLaunch) {
  Result<Launch> launch = Launch::create(0);
  ASSERT_TRUE(launch.ok());
  EXPECT_FALSE(set_device(99).ok());
  EXPECT_FALSE(copy(nullptr, nullptr, 8, launch->stream).ok());
  Result<DeviceBuffer> small = DeviceBuffer::create(64, "small");
  ASSERT_TRUE(small.ok());
  const Status next = add_one_on(launch->stream, *small, 16);
  EXPECT_TRUE(next.ok()) << next.message();
  EXPECT_TRUE(launch->stream.synchronize().ok());
}

TEST(Device, AWorkspaceRefusesToGrowUnderCaptureAndKeepsWhatAGraphHolds) {
  Result<Launch> launch = Launch::create(0);
  ASSERT_TRUE(launch.ok());
  Result<void*> first = launch->workspace.get(0, 1024, launch->stream);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*launch->workspace.get(0, 512, launch->stream), *first);
  const Result<Graph> graph = Graph::capture(launch->stream, [&]() -> Status {
    return launch->workspace.get(0, size_t{1} << 20, launch->stream).status();
  });
  ASSERT_FALSE(graph.ok());
  EXPECT_NE(graph.status().message().find("once before capturing"), std::string::npos)
      << graph.status().message();
  ASSERT_TRUE(launch->workspace.get(0, size_t{1} << 20, launch->stream).ok());
  EXPECT_GE(launch->workspace.bytes(), (size_t{1} << 20) + 1024);
  EXPECT_TRUE(fill_bytes(*first, 1, 1024, launch->stream).ok());
  EXPECT_TRUE(launch->stream.synchronize().ok());
}

TEST(Device, AnUnknownDeviceIsNamed) {
  const Result<DeviceProperties> properties = device_properties(99);
  ASSERT_FALSE(properties.ok());
  EXPECT_EQ(properties.status().field(), "device");
}

}  // namespace
}  // namespace tessera::cuda
