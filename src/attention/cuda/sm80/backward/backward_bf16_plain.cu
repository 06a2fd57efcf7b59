#include "attention/cuda/sm80/backward/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template int resident_backward<DType::bf16, 64, BackwardTiles::plain>(int);
template void launch_backward<DType::bf16, 64, BackwardTiles::plain>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 96, BackwardTiles::plain>(int);
template void launch_backward<DType::bf16, 96, BackwardTiles::plain>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 128, BackwardTiles::plain>(int);
template void launch_backward<DType::bf16, 128, BackwardTiles::plain>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 192, BackwardTiles::plain>(int);
template void launch_backward<DType::bf16, 192, BackwardTiles::plain>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 256, BackwardTiles::plain>(int);
template void launch_backward<DType::bf16, 256, BackwardTiles::plain>(const BackwardParams&, void*);

}  // namespace tessera::attention::cuda::sm80
