#include "attention/cuda/sm80/prefill/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template void launch_forward<DType::f32, 64, true, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::f32, 96, true, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::f32, 128, true, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::f32, 192, true, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::f32, 256, true, false>(const ForwardParams&, unsigned, void*);

}  // namespace tessera::attention::cuda::sm80
