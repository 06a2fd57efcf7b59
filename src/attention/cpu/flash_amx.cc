#include "attention/cpu/flash_amx.inc.h"
#include "attention/cpu/kernels.h"

namespace tessera::attention {
const TileKernel kFlashBf16_amx = {"flash_bf16_amx",
                                   simd::Isa::amx,
                                   DType::bf16,
                                   amx::query_bytes_amx,
                                   amx::scratch_bytes_amx,
                                   amx::pack_query_amx,
                                   amx::walk_amx<false>,
                                   amx::walk_amx<true>,
                                   amx::fold,
                                   amx::fold_part,
                                   amx::finish,
                                   nullptr,  // rows where they lie: packed first here
                                   amx::enter_tiles,
                                   amx::leave_tiles};
}  // namespace tessera::attention
