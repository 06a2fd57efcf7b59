#include "attention/cuda/sm80/backward/launch.cuh"

namespace tessera::attention::cuda::sm80 {

template int resident_backward<DType::bf16, 64, false>(int);
template void launch_backward<DType::bf16, 64, false>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 96, false>(int);
template void launch_backward<DType::bf16, 96, false>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 128, false>(int);
template void launch_backward<DType::bf16, 128, false>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 192, false>(int);
template void launch_backward<DType::bf16, 192, false>(const BackwardParams&, void*);
template int resident_backward<DType::bf16, 256, false>(int);
template void launch_backward<DType::bf16, 256, false>(const BackwardParams&, void*);

}  // namespace tessera::attention::cuda::sm80
