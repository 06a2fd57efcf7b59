#include "attention/cuda/sm80/backward/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template int resident_backward<DType::f32, 96, BackwardTiles::small>(int);
template void launch_backward<DType::f32, 96, BackwardTiles::small>(const BackwardParams&, void*);
template int resident_backward<DType::f32, 128, BackwardTiles::small>(int);
template void launch_backward<DType::f32, 128, BackwardTiles::small>(const BackwardParams&, void*);

}  // namespace tessera::attention::cuda::sm80
