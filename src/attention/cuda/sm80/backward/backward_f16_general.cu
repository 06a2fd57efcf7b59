#include "attention/cuda/sm80/backward/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template int resident_backward<DType::f16, 64, BackwardTiles::general>(int);
template void launch_backward<DType::f16, 64, BackwardTiles::general>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 96, BackwardTiles::general>(int);
template void launch_backward<DType::f16, 96, BackwardTiles::general>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 128, BackwardTiles::general>(int);
template void launch_backward<DType::f16, 128, BackwardTiles::general>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 192, BackwardTiles::general>(int);
template void launch_backward<DType::f16, 192, BackwardTiles::general>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 256, BackwardTiles::general>(int);
template void launch_backward<DType::f16, 256, BackwardTiles::general>(const BackwardParams&, void*);

}  // namespace tessera::attention::cuda::sm80
