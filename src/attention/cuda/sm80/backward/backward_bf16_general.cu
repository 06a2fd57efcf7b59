#include "attention/cuda/sm80/backward/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template int resident_backward<DType::bf16, 64, true>(int);
template void launch_backward<DType::bf16, 64, true>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 96, true>(int);
template void launch_backward<DType::bf16, 96, true>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 128, true>(int);
template void launch_backward<DType::bf16, 128, true>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 192, true>(int);
template void launch_backward<DType::bf16, 192, true>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 256, true>(int);
template void launch_backward<DType::bf16, 256, true>(const BackwardParams&, void*);

}  // namespace tessera::attention::cuda::sm80
