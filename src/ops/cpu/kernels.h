// The CPU kernels of ops: one table of functions for each ISA, one row or one register tile a call.
// Everything above them (threads, tiles, ragged edges) is written once, in the *_cpu.cc of each op.
#pragma once

#include <cstdint>

#include "ops/quant_layout.h"

namespace tessera::simd {
enum class Isa : int;
}

namespace tessera::ops {

// One register tile: y[r * y_stride + p * y_step + lane] = (add: +=) the dot product of row r and lane of
// panel p, r < rows, p < panels, lane < 16. Panels are 64-byte aligned; prefetching past their end is
// allowed, loading is not.
struct Tile {
  const uint8_t* panel;
  int64_t panel_step;  // bytes from panel to panel
  int panels;          // 1 or 2
  int rows;            // 1..6
  float* y;
  int64_t y_stride;
  int64_t y_step;
  bool add;
};

struct BlockInput {
  const uint8_t* tile;  // quantised rows, a whole tile of `rows` rows
  int64_t blocks;       // k / 32
};
using BlockKernel = void (*)(const Tile& tile, const BlockInput& input);

struct PlainInput {
  const float* x;
  int64_t stride;
  int64_t k;
};
using PlainKernel = void (*)(const Tile& tile, const PlainInput& input);

// By the weights' type.
struct LinearKernels {
  BlockKernel q4_0, q4_1, q8_0;
  PlainKernel f32, f16, bf16;
};

struct Kernels {
  const char* isa;  // whose instructions they are
  const LinearKernels* linear;

  void (*quantize)(const float* x, int64_t blocks, const QuantizedRowPointer& out);
  // y may be x.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float epsilon, float* y);
  void (*rms_norm_quantized)(const float* x, const float* weight, int64_t n, float epsilon,
                             const QuantizedRowPointer& out);
  void (*add)(const float* x, int64_t n, float* y);  // y += x
  void (*silu)(const float* x, int64_t n, float* y);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* y);
  void (*rope_half)(float* x, const float* cos_sin, int64_t half);  // cos [half], sin [half]
  void (*rope_interleaved)(float* x, const float* cos_sin, int64_t half);
  int64_t (*argmax)(const float* x, int64_t n);  // -1 when a NaN is among them
  bool (*any_nonfinite)(const float* x, int64_t n);
};

// REQUIRES: the machine supports `isa`. avx512bf16 has no kernels of its own here: integer dots are the same,
// and bf16 weights are widened, because rounding the activations to bf16 would change the result.
const Kernels& kernels_for(simd::Isa isa);
// Of TESSERA_ISA or the best ISA; read once.
const Kernels& kernels();

namespace scalar {
extern const LinearKernels kLinear;
}
namespace avx2 {
extern const LinearKernels kLinear;
}
namespace avx512 {
extern const LinearKernels kLinear;
}
extern const Kernels kKernelsScalar;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;

}  // namespace tessera::ops
