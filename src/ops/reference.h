// The ops written as their definitions, one row at a time, in double or (for the chains that law 1 fixes) in
// the stated f32 operations. They share no code with the kernels that they check, read the weights as the
// file has them, and are the oracle of every form of an op.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/packed_weight.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"

namespace tessera::ops::reference {

// Row `row` of a source with k columns, by the GGUF specification: out[k].
std::vector<float> weight_row(const WeightSource& source, int64_t row, int64_t k);

// x [k] quantised as quantized_rows.h says; k % 32 == 0.
struct QuantizedRow {
  std::vector<int8_t> q;    // [k]
  std::vector<float> d, s;  // [k / 32]
};
QuantizedRow quantize(const float* x, int64_t k);

// Dot product of x [k] and a row of the source: in double; and as the chain of f32 operations of linear.h.
double dot_exact(const WeightSource& source, int64_t row, int64_t k, const float* x);
float dot_chain(const WeightSource& source, int64_t row, int64_t k, const float* x, Compute compute);

// One row each, in double. `out` may be the input.
void rms_norm(const RmsNorm& norm, const float* x, double* out);
void rope(const RopeConfig& config, int64_t position, const double* head, double* out);  // [dims]
double silu(double x);

}  // namespace tessera::ops::reference
