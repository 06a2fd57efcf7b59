#include "attention/cuda/sm80/backward/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template int resident_backward<DType::bf16, 96, BackwardTiles::small>(int);
template void launch_backward<DType::bf16, 96, BackwardTiles::small>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 128, BackwardTiles::small>(int);
template void launch_backward<DType::bf16, 128, BackwardTiles::small>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 192, BackwardTiles::small>(int);
template void launch_backward<DType::bf16, 192, BackwardTiles::small>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 256, BackwardTiles::small>(int);
template void launch_backward<DType::bf16, 256, BackwardTiles::small>(const BackwardParams&, void*);

}  // namespace tessera::attention::cuda::sm80
