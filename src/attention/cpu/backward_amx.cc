#include "attention/cpu/backward_amx.inc.h"
#include "attention/cpu/backward_kernels.h"

namespace tessera::attention {
const BackwardKernel kBackward_amx = {"backward_amx",
                                      simd::Isa::amx,
                                      1u << static_cast<int>(DType::bf16),
                                      amx::kAmxRows,
                                      amx::segment_bytes_amx,
                                      amx::block_bytes_amx,
                                      amx::row_delta,
                                      amx::pack_tile_amx,
                                      amx::pack_rows_amx,
                                      amx::walk_amx,
                                      amx::sum_dq_amx,
                                      amx::write_dq_amx,
                                      nullptr,  // dq in f32 is not this kernel's
                                      amx::write_tile_amx,
                                      true,
                                      amx::enter_tiles,
                                      amx::leave_tiles};
}  // namespace tessera::attention
