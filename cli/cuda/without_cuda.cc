#include "cuda/bench_device.h"
#include "tessera/cuda.h"

namespace tessera::cli {

Status bench_attention_on_device(const DeviceAttentionOptions&) {
  return cuda_device_count().status();
}
Status bench_decode_on_device(const DeviceDecodeOptions&) {
  return cuda_device_count().status();
}
Status bench_tree_on_device(const DeviceTreeOptions&) {
  return cuda_device_count().status();
}

}  // namespace tessera::cli
