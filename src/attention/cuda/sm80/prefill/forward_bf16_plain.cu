#include "attention/cuda/sm80/prefill/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template void launch_forward<DType::bf16, 64, false, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 96, false, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 128, false, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 192, false, false>(const ForwardParams&, unsigned, void*);
template void launch_forward<DType::bf16, 256, false, false>(const ForwardParams&, unsigned, void*);

}  // namespace tessera::attention::cuda::sm80
