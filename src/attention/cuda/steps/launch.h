// The host side of a step over a cache: what is the same for the kernels of every architecture.
#pragma once

#include <algorithm>

#include "attention/cuda/common/slots.h"
#include "attention/cuda/steps/params.h"
#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/paged.h"

namespace tessera::attention::cuda::steps {

// Performance only: the bits are the same.
struct DecodeTuning {
  int blocks = 0;     // of the grid; 0: one for each multiprocessor
  bool split = true;  // false: one block walks all keys of a (sequence, kv head)
  bool early = true;  // start before the kernel ahead has ended (its results are waited for)
};

// Most bytes of partial states; beyond, work is not split and nothing is shared.
inline constexpr int64_t kMostPartialBytes = int64_t{1} << 30;

// A kernel that walks pieces, and what it needs.
struct DecodeKernel {
  const void* kernel = nullptr;  // of DecodeParams
  int shared_bytes = 0, threads = 0;
  int most_rows = 0;  // of a piece
};
// The one that folds what is handed over (of DecodeParams). `dim`: kernel_dim()'s.
const void* combine_kernel_for(DType dtype, int dim, bool listed, bool features);

// What a step over a cache can do; the fields of the host alone.
Status check_step_problem(const AttentionProblem& problem);
// Of the kernel that takes it: 64, 128 or 256, at least both head sizes.
int kernel_dim(const AttentionProblem& problem);
// Anything that needs the second instantiation, other head sizes too.
bool has_features(const AttentionProblem& problem);
void set_problem(const AttentionProblem& problem, DecodeParams& params);
// Checks the cache's numbers and puts its table and lengths into params, not its rows.
Status set_table(const AttentionProblem& problem, const CacheView& cache, DecodeParams& params);
// Checks q, o and the new rows, and puts q and o into params.
Status set_rows(const CacheAppend& append, const CacheTensors& tensors, DecodeParams& params);
// The kernel that writes the new rows, when there are any; params.q is then the rotated one.
Status append_rows(tessera::cuda::Launch& launch, const AttentionProblem& problem, const CacheView& cache,
                   const CacheAppend& append, DecodeParams& params);
// How `kernel` divides a decode: row blocks, whether rows may be split (then workspace for partials). Returns
// the blocks of the grid.
Result<int> set_division(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                         const DecodeKernel& kernel, const DecodeTuning& tuning, DecodeParams& params);
// Workspace for that many partial rows, of so many bytes.
int64_t partial_bytes(int64_t rows, int head_dim);
Status set_partials(tessera::cuda::Launch& launch, int64_t rows, int head_dim, DecodeParams& params);

// A pointer and strides that 16-byte copies can take; `what` is the field that an error names.
template <typename Pointer>
Status check_rows(const char* what, const Strided<Pointer>& rows);
template <typename Pointer>
TokenRows<std::remove_pointer_t<Pointer>> rows_of(const Strided<Pointer>& rows) {
  return {rows.data, rows.batch_stride, rows.row_stride, rows.head_stride};
}
// Entries of a sequence in the block table.
inline int64_t table_stride_of(const CacheView& cache) {
  return cache.table_stride > 0 ? cache.table_stride : cache.max_blocks;
}
// Keys that a sequence has room for, as kernels count them.
inline int32_t capacity_of(const CacheView& cache) {
  const int64_t slots = cache.block_table != nullptr ? cache.max_blocks * cache.block_size : cache.block_size;
  return static_cast<int32_t>(std::min(int64_t{1} << 30, slots));
}

inline Strided<const void*> read_only(const Strided<void*>& rows) {
  return {rows.data, rows.batch_stride, rows.row_stride, rows.head_stride};
}

// `dependent`: may start before the kernel ahead has ended (it waits itself); ignored below sm_90, which has
// no such launches.
Status launch_kernel(const tessera::cuda::Launch& launch, const void* kernel, int blocks, int threads,
                     int shared_bytes, bool dependent, const void* params, const char* name);
// The one that folds what a decode or a tree (`listed`) has handed over.
Status launch_combine(tessera::cuda::Launch& launch, const AttentionProblem& problem, bool listed,
                      const DecodeParams& params);
// set_division()'s grid of a decode, and its combine where rows may be split.
Status launch_decode(tessera::cuda::Launch& launch, const AttentionProblem& problem,
                     const DecodeKernel& kernel, const DecodeTuning& tuning, DecodeParams& params);

}  // namespace tessera::attention::cuda::steps
