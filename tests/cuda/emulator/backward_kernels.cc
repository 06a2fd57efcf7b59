// The sm_80 backward as host code, and its launches. Blocks run one after the other, so that of key tiles
// that add to the same rows one runs at a time.
#include "attention/cuda/sm80/backward/kernel.cuh"
#include "attention/cuda/sm80/backward/launch.h"
#include "tests/cuda/emulator/grid.h"

namespace tessera::attention::cuda::sm80 {

template <DType kType, int kDim, bool kGeneral>
int resident_backward(int) {
  return 1;
}

// What launch.cuh does on a device.
template <DType kType, int kDim, bool kGeneral>
void launch_backward(const BackwardParams& p, void*) {
  if constexpr (kDim == 64 || (kDim == 128 && kType != DType::f16)) {
    constexpr BackwardConfig kConfig = backward_config(kType, kDim, kGeneral);
    constexpr size_t kShared = kConfig.shared_bytes(kPitch<kType, kDim>, kPitch<kType, kConfig.keys>);
    const int padded = p.row_tiles * kConfig.rows;
    const int64_t rows = int64_t{p.batch} * p.heads * padded;
    run_grid(static_cast<unsigned>(rows / 32 + 1), 256, 0,
             [&] { backward_prepare_kernel<kType>(p, padded); });
    run_grid(static_cast<unsigned>(p.batch * p.kv_heads * p.key_tiles), kConfig.threads(), kShared,
             [&] { backward_kernel<kType, kDim, kGeneral>(p); });
    run_grid(static_cast<unsigned>(p.batch * p.heads * p.row_tiles), kConfig.threads(),
             kConfig.rows * kPitch<kType, kDim>, [&] { backward_finish_kernel<kType, kDim, kGeneral>(p); });
  } else {
    emulator::fail("the backward of head sizes of 64, and of 128 in bf16 and f32, is emulated");
  }
}

#define TESSERA_LAUNCH(type, dim, general)                        \
  template int resident_backward<DType::type, dim, general>(int); \
  template void launch_backward<DType::type, dim, general>(const BackwardParams&, void*);
#define TESSERA_LAUNCHES(type, general) \
  TESSERA_LAUNCH(type, 64, general)     \
  TESSERA_LAUNCH(type, 96, general)     \
  TESSERA_LAUNCH(type, 128, general)    \
  TESSERA_LAUNCH(type, 192, general)    \
  TESSERA_LAUNCH(type, 256, general)
TESSERA_LAUNCHES(bf16, false)
TESSERA_LAUNCHES(bf16, true)
TESSERA_LAUNCHES(f16, false)
TESSERA_LAUNCHES(f16, true)
TESSERA_LAUNCHES(f32, true)

}  // namespace tessera::attention::cuda::sm80
