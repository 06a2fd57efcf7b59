#include "attention/cuda/sm80/prefill/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template void launch_forward<DType::f32, 64, true, true>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::f32, 128, true, true>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::f32, 256, true, true>(const ForwardParams&, unsigned, void*);

}  // namespace tessera::attention::cuda::sm80
