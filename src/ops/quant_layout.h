// Constants and addresses of quantised rows, apart from quantized_rows.h so that kernels compiled for one ISA
// include nothing of the standard library but <cstdint>.
#pragma once

#include <cstdint>

namespace tessera::ops {

inline constexpr int kPanel = 16;       // outputs of a weight panel
inline constexpr int kQuantBlock = 32;  // elements along k that share a scale
inline constexpr int kTileRows = 8;     // rows of a full tile of quantised activations
inline constexpr int kQuantBytes = 48;  // of one row and block of quantised activations

// Where one row lies inside its tile (quantized_rows.h has the layout). Block b is at q + b * step and f + b
// * step.
struct QuantizedRowPointer {
  uint8_t* q;  // int8 [32]
  uint8_t* f;  // d; then s, minus8, minus128, `field` bytes apart
  int64_t field;
  int64_t step;
};

}  // namespace tessera::ops
