// tessera::cuda over the host's memory, as far as a step asks for it, and the kernels of sm_90, which are not
// there: a test that would launch one fails.
#include <cstdlib>
#include <cstring>

#include "attention/cuda/sm90/decode/decode.h"
#include "attention/cuda/sm90/decode/launch.h"
#include "tests/cuda/emulator/warps.h"

namespace tessera::cuda {

Status to_status(int cuda_error, const std::string& what) {
  return cuda_error == 0 ? Status() : Status(StatusCode::internal, what);
}
Status launched(const char*, const std::string&) {
  return {};
}
Result<DeviceBuffer> DeviceBuffer::create(size_t bytes, const char*) {
  DeviceBuffer buffer;
  buffer.data_ = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  buffer.size_ = bytes;
  std::memset(buffer.data_, 0xff, bytes);
  return buffer;
}
void DeviceBuffer::reset() {
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
}
Result<std::shared_ptr<DeviceBuffer>> DevicePool::take(const std::shared_ptr<DevicePool>&, size_t bytes,
                                                       const char* what) {
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::create(bytes, what));
  return std::make_shared<DeviceBuffer>(std::move(buffer));
}
Stream::~Stream() = default;
Status Stream::synchronize() const {
  return {};
}
Status copy(void* destination, const void* source, size_t bytes, const Stream&) {
  std::memcpy(destination, source, bytes);
  return {};
}
Result<void*> DeviceWorkspace::get(int slot, size_t bytes, const Stream&) {
  TESSERA_ASSIGN_OR_RETURN(slots_[slot], DeviceBuffer::create(bytes, "scratch"));
  return slots_[slot].data();
}

}  // namespace tessera::cuda

namespace tessera::attention::cuda::sm90 {
Status supports_decode(const AttentionProblem&) {
  emulator::fail("sm90::supports_decode is not emulated");
}

Status decode(tessera::cuda::Launch&, const AttentionProblem&, const CacheView&, const CacheAppend&,
              const CacheTensors&, const DecodeTuning&) {
  emulator::fail("sm90::decode is not emulated");
}
Status set_cache(const AttentionProblem&, const CacheView&, bool, DecodeParams&) {
  emulator::fail("sm90::set_cache is not emulated");
}
DecodeKernel tree_kernel_for(const AttentionProblem&) {
  emulator::fail("the sm_90 tree kernel is not emulated");
}

}  // namespace tessera::attention::cuda::sm90
