// Rotary embedding for the bindings.
#pragma once

#include <string>

#include "bindings/arrays.h"
#include "tessera/rope.h"

namespace tessera::python {

// cos and sin: [positions, rotary_dim / 2] of one dtype and the same strides, the last dimension contiguous.
attention::Rotary rotary_of(const Array& cos, const Array& sin, const std::string& dtype, bool interleaved);

}  // namespace tessera::python
