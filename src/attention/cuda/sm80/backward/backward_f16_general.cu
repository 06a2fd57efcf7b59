#include "attention/cuda/sm80/backward/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template int resident_backward<DType::f16, 64, true>(int);
template void launch_backward<DType::f16, 64, true>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 96, true>(int);
template void launch_backward<DType::f16, 96, true>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 128, true>(int);
template void launch_backward<DType::f16, 128, true>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 192, true>(int);
template void launch_backward<DType::f16, 192, true>(const BackwardParams&, void*);
template int resident_backward<DType::f16, 256, true>(int);
template void launch_backward<DType::f16, 256, true>(const BackwardParams&, void*);

}  // namespace tessera::attention::cuda::sm80
