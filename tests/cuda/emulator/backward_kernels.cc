// The sm_80 backward as host code, and its launches. Blocks run one after the other, so that of key tiles
// that add to the same rows one runs at a time.
#include "attention/cuda/sm80/backward/kernel.cuh"
#include "attention/cuda/sm80/backward/launch.h"
#include "tests/cuda/emulator/grid.h"

namespace tessera::attention::cuda::sm80 {

template <DType kType, int kDim, BackwardTiles kTiles>
int resident_backward(int) {
  return 1;
}

// What launch.cuh does on a device.
template <DType kType, int kDim, BackwardTiles kTiles>
void launch_backward(const BackwardParams& p, void*) {
  if constexpr (kDim == 64 || kTiles == BackwardTiles::small || (kDim == 128 && kType == DType::bf16)) {
    constexpr BackwardConfig kConfig = backward_config(kType, kDim, kTiles);
    constexpr size_t kShared = kConfig.shared_bytes(kPitch<kType, kDim>, kPitch<kType, kConfig.keys>);
    const int padded = p.row_tiles * kConfig.rows;
    const int64_t rows = int64_t{p.batch} * p.heads * padded;
    run_grid(static_cast<unsigned>(rows / 32 + 1), 256, 0,
             [&] { backward_prepare_kernel<kType>(p, padded); });
    run_grid(static_cast<unsigned>(p.batch * p.kv_heads * p.key_tiles), kConfig.threads(), kShared,
             [&] { backward_kernel<kType, kDim, kTiles>(p); });
    run_grid(static_cast<unsigned>(p.batch * p.heads * p.row_tiles), kConfig.threads(),
             kConfig.rows * kPitch<kType, kDim>, [&] { backward_finish_kernel<kType, kDim, kTiles>(p); });
  } else {
    emulator::fail("the backward by small tiles, of head sizes of 64, and of 128 in bf16, is emulated");
  }
}

#define TESSERA_LAUNCH(type, dim, tiles)                                       \
  template int resident_backward<DType::type, dim, BackwardTiles::tiles>(int); \
  template void launch_backward<DType::type, dim, BackwardTiles::tiles>(const BackwardParams&, void*);
#define TESSERA_LAUNCHES(type, tiles) \
  TESSERA_LAUNCH(type, 64, tiles)     \
  TESSERA_LAUNCH(type, 96, tiles)     \
  TESSERA_LAUNCH(type, 128, tiles)    \
  TESSERA_LAUNCH(type, 192, tiles)    \
  TESSERA_LAUNCH(type, 256, tiles)
TESSERA_LAUNCHES(bf16, plain)
TESSERA_LAUNCHES(bf16, general)
TESSERA_LAUNCHES(f16, plain)
TESSERA_LAUNCHES(f16, general)
TESSERA_LAUNCHES(f32, general)
TESSERA_LAUNCH(bf16, 96, small)
TESSERA_LAUNCH(bf16, 128, small)
TESSERA_LAUNCH(bf16, 192, small)
TESSERA_LAUNCH(bf16, 256, small)
TESSERA_LAUNCH(f16, 96, small)
TESSERA_LAUNCH(f16, 128, small)
TESSERA_LAUNCH(f16, 192, small)
TESSERA_LAUNCH(f16, 256, small)
TESSERA_LAUNCH(f32, 96, small)
TESSERA_LAUNCH(f32, 128, small)

}  // namespace tessera::attention::cuda::sm80
