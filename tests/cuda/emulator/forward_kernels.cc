// The sm_80 forward over tensors and over caches as host code, and its launch.
#include "attention/cuda/common/seen_keys.h"
#include "attention/cuda/sm80/prefill/kernel.cuh"
#include "attention/cuda/sm80/prefill/launch.h"
#include "core/cuda/device.h"
#include "tests/cuda/emulator/grid.h"

namespace tessera::attention::cuda::sm80 {

alignas(1024) char shared[kSharedOfDevice];

// What launch.cuh does on a device.
template <DType kType, int kDim, bool kGeneral, bool kCache>
void launch_forward(const ForwardParams& params, unsigned blocks, void*) {
  if constexpr (kCache || kDim == 64 || kDim == 128) {
    constexpr ForwardConfig kConfig = forward_config(kType, kDim, kGeneral);
    run_grid(blocks, kConfig.threads(), kConfig.shared_bytes(kPitch<kType, kDim>),
             [&] { forward_kernel<kType, kDim, kGeneral, kCache>(params); });
  } else {
    emulator::fail("over tensors, head sizes of 64 and 128 are emulated");
  }
}

#define TESSERA_LAUNCH(type, dim, general, cache) \
  template void launch_forward<DType::type, dim, general, cache>(const ForwardParams&, unsigned, void*);
#define TESSERA_LAUNCHES(type, general)     \
  TESSERA_LAUNCH(type, 64, general, false)  \
  TESSERA_LAUNCH(type, 96, general, false)  \
  TESSERA_LAUNCH(type, 128, general, false) \
  TESSERA_LAUNCH(type, 192, general, false) \
  TESSERA_LAUNCH(type, 256, general, false) \
  TESSERA_LAUNCH(type, 64, general, true)   \
  TESSERA_LAUNCH(type, 128, general, true)  \
  TESSERA_LAUNCH(type, 256, general, true)
TESSERA_LAUNCHES(bf16, false)
TESSERA_LAUNCHES(bf16, true)
TESSERA_LAUNCHES(f16, false)
TESSERA_LAUNCHES(f16, true)
TESSERA_LAUNCHES(f32, true)

}  // namespace tessera::attention::cuda::sm80

namespace tessera::attention::cuda {

// In the place of the kernel: key by key, row by row.
Status mark_seen_keys(tessera::cuda::Launch&, const Features& features, int batch, int heads, int kv_heads,
                      uint8_t* seen) {
  const int group = heads / kv_heads;
  for (int b = 0; b < batch; ++b) {
    const Sequence sequence = sequence_of(features, b);
    for (int h = 0; h < kv_heads; ++h) {
      for (int key = 0; key < sequence.length; ++key) {
        bool any = false;
        for (int i = 0; i < group && !any; ++i) {
          for (int row = 0; row < sequence.rows && !any; ++row)
            any = sees(features, sequence, b, h * group + i, row, key);
        }
        seen[(int64_t{b} * kv_heads + h) * features.seqlen_k + key] = any;
      }
    }
  }
  return {};
}

}  // namespace tessera::attention::cuda
