#include "attention/cuda/sm80/prefill/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template void launch_forward<DType::bf16, 64, false, true>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 128, false, true>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 256, false, true>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 64, true, true>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 128, true, true>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 256, true, true>(const ForwardParams&, unsigned, void*);

}  // namespace tessera::attention::cuda::sm80
