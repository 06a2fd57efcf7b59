// TensorView: a pointer with a shape. It owns nothing.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "core/check.h"
#include "tessera/dtype.h"

namespace tessera {

enum class Device : uint8_t { cpu, cuda };

// Row-major unless strides say otherwise; strides are in elements. Blocked dtypes have a contiguous innermost
// dimension whose size is a multiple of the block.
struct TensorView {
  static constexpr int kMaxRank = 5;
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};

  TensorView() = default;
  // Contiguous.
  TensorView(void* data_in, DType dtype_in, std::initializer_list<int64_t> shape_in)
      : data(data_in), dtype(dtype_in), rank(static_cast<int>(shape_in.size())) {
    TESSERA_CHECK(rank <= kMaxRank);
    int axis = 0;
    for (int64_t extent : shape_in) shape[axis++] = extent;
    int64_t step = 1;
    for (axis = rank - 1; axis >= 0; --axis) {
      stride[axis] = step;
      step *= shape[axis];
    }
  }

  int64_t elements() const {
    int64_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= shape[axis];
    return count;
  }
  // Bytes of a contiguous tensor of this shape.
  int64_t bytes() const { return elements() / info(dtype).block_elements * info(dtype).block_bytes; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace tessera
