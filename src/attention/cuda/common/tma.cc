#include "attention/cuda/common/tma.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/cuda/device.h"
#include "core/format.h"

namespace tessera::attention::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, found at run time so that nothing links libcuda.
Result<Encode> encoder() {
  static void* const function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? found : nullptr;
  }();
  if (function == nullptr) {
    return unsupported("the driver lacks cuTensorMapEncodeTiled; a driver for CUDA 12.0 or later has it",
                       "device");
  }
  return reinterpret_cast<Encode>(function);
}

// A stride of an axis of one element is never used, but the format wants it above 0.
cuuint64_t stride_bytes(int64_t stride, int64_t count) {
  return static_cast<cuuint64_t>(count <= 1 ? std::max<int64_t>(16, stride * 2) : stride * 2);
}

Status encoded(CUtensorMap* map, const char* what, DType dtype, const Strided<const void*>& tensor,
               uint32_t rank, const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
               CUtensorMapSwizzle swizzle, Promotion promotion) {
  TESSERA_ASSIGN_OR_RETURN(const Encode encode, encoder());
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult result = encode(
      map, dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank,
      const_cast<void*>(tensor.data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
      promotion == Promotion::none ? CU_TENSOR_MAP_L2_PROMOTION_NONE : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  // Anything but a map that cannot be is not the tensor's fault.
  if (result != CUDA_SUCCESS && result != CUDA_ERROR_INVALID_VALUE)
    return tessera::cuda::to_status(static_cast<int>(result), format("a tensor map of {}", what));
  if (result != CUDA_SUCCESS) {
    return invalid_argument(
        format("{} with strides {}, {}, {}: no tensor map (driver error {})", what, tensor.batch_stride,
               tensor.row_stride, tensor.head_stride, static_cast<int>(result)),
        what);
  }
  return {};
}

}  // namespace

Status check_mappable(const char* what, const Strided<const void*>& tensor) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0) {
    return unsupported(format("{}'s address {} must be a multiple of 16 bytes", what, tensor.data), what);
  }
  for (const int64_t stride : {tensor.row_stride, tensor.head_stride, tensor.batch_stride}) {
    if (stride < 0 || stride % 8 != 0 || stride >= int64_t{1} << 39) {
      return unsupported(
          format("{}'s stride {} must be a multiple of 8 elements from 0 to 2^39 - 1", what, stride), what);
    }
  }
  return {};
}

Status tensor_map(CUtensorMap* map, const char* what, DType dtype, const Strided<const void*>& tensor,
                  int64_t batches, int64_t rows, int64_t heads, int64_t dim, int box_rows, int box_panels,
                  Promotion promotion) {
  TESSERA_RETURN_IF_ERROR(check_mappable(what, tensor));
  if (dim > 64 && dim % 64 != 0) {
    return unsupported(format("{}: head_dim={} must be at most 64 or a multiple of 64", what, dim),
                       "head_dim");
  }
  const int64_t inner = std::min<int64_t>(dim, 64);
  const cuuint64_t dims[5] = {static_cast<cuuint64_t>(inner),
                              static_cast<cuuint64_t>(std::max<int64_t>(rows, 1)),
                              static_cast<cuuint64_t>((dim + 63) / 64), static_cast<cuuint64_t>(heads),
                              static_cast<cuuint64_t>(std::max<int64_t>(batches, 1))};
  const cuuint64_t strides[4] = {stride_bytes(tensor.row_stride, rows), 128,
                                 stride_bytes(tensor.head_stride, heads),
                                 stride_bytes(tensor.batch_stride, batches)};
  const cuuint32_t box[5] = {static_cast<cuuint32_t>(inner), static_cast<cuuint32_t>(box_rows),
                             static_cast<cuuint32_t>(box_panels), 1, 1};
  return encoded(map, what, dtype, tensor, 5, dims, strides, box,
                 inner == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                 : inner == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                               : CU_TENSOR_MAP_SWIZZLE_NONE,
                 promotion);
}

Status row_map(CUtensorMap* map, const char* what, DType dtype, const Strided<const void*>& tensor,
               int64_t batches, int64_t rows, int64_t heads, int64_t dim, int box_rows, Promotion promotion) {
  TESSERA_RETURN_IF_ERROR(check_mappable(what, tensor));
  const cuuint64_t dims[4] = {
      static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(std::max<int64_t>(rows, 1)),
      static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(std::max<int64_t>(batches, 1))};
  const cuuint64_t strides[3] = {stride_bytes(tensor.row_stride, rows),
                                 stride_bytes(tensor.head_stride, heads),
                                 stride_bytes(tensor.batch_stride, batches)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1};
  return encoded(map, what, dtype, tensor, 4, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B, promotion);
}

Status group_map(CUtensorMap* map, const char* what, DType dtype, const Strided<const void*>& tensor,
                 int64_t batches, int64_t rows, int64_t heads, int64_t dim, int box_heads, int box_rows,
                 Promotion promotion) {
  TESSERA_RETURN_IF_ERROR(check_mappable(what, tensor));
  const cuuint64_t dims[4] = {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(heads),
                              static_cast<cuuint64_t>(std::max<int64_t>(rows, 1)),
                              static_cast<cuuint64_t>(std::max<int64_t>(batches, 1))};
  const cuuint64_t strides[3] = {stride_bytes(tensor.head_stride, heads),
                                 stride_bytes(tensor.row_stride, rows),
                                 stride_bytes(tensor.batch_stride, batches)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_heads), static_cast<cuuint32_t>(box_rows), 1};
  return encoded(map, what, dtype, tensor, 4, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B, promotion);
}

}  // namespace tessera::attention::cuda
