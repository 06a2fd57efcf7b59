// Constants and addresses of quantised rows, apart from quantized_rows.h so that kernels compiled for one ISA
// include nothing of the standard library but <cstdint>.
#pragma once

#include <cstdint>

namespace tessera::ops {

inline constexpr int kPanel = 16;       // outputs of a weight panel
inline constexpr int kQuantBlock = 32;  // elements along k that share a scale
// Rows of a full tile: 6 rows x 2 panels fill 32 vector registers (24 accumulators), and 6 x 16 outputs
// fill 16. Measured on Zen 5 against 8 x 1, 4 x 2, 5 x 2 and 12 x 1: the first two are 5 % slower from cache
// and 10 % from memory.
inline constexpr int kTileRows = 6;
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
