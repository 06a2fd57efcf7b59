// PackedWeight: the matrix of a linear layer, packed once at load into what the CPU kernels stream.
//
// Panels of 16 outputs ("P16"). Output rows are cut into panels of 16 (each source starts a new panel; the
// last one of a source is padded with zeros). A panel holds all of k, so a kernel reads it once from front to
// back:
//   f32, f16, bf16   [k][16] elements
//   q4_0, q4_1       quants: for each block of 32 along k, 4 groups of 64 bytes; group j holds for lane r the
//                    4 bytes whose low nibbles are k = 4j..4j+3 and whose high nibbles are k = 16+4j..16+4j+3
//   q8_0             quants: for each block, 8 groups of 64 bytes: lane r's k = 4j..4j+3, as value + 128
//   (unsigned) all three        then scales: for each block f16 d[16], and for q4_1 f16 m[16]; the panel
//   padded to 64 bytes
// A group is one zmm, two ymm or four q registers, so one layout serves every ISA. The bytes are those of the
// GGUF (when 16 divides n and 64 divides k).
//
// Which kind a source gets:
//   Compute::f32        f32, f16, bf16 stay as they are (widening is exact, so the bits of the result are
//   those of f32
//                       panels); q4_0, q4_1, q8_0 are dequantised to f32
//   Compute::quantized  every source stays as it is; blocks meet int8 activations, plain elements meet f32
//   ones
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/context.h"
#include "ops/quant_layout.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::ops {

enum class Compute : uint8_t { f32, quantized };

// A matrix [rows][k] as in the file: row-major, rows without gaps, blocks along k.
struct WeightSource {
  DType dtype = DType::f32;
  const void* data = nullptr;
  int64_t rows = 0;
};

enum class PanelOrder : uint8_t {
  concatenated,  // all panels of the first source, then of the second... (q, k, v)
  interleaved,   // panel i of the first, panel i of the second, panel i + 1... (gate, up); two sources of
                 // equal rows
};

// The panels of one source.
struct PanelSegment {
  DType kind = DType::f32;
  int64_t first = 0;   // its first output
  int64_t rows = 0;    // outputs
  int64_t panels = 0;  // ceil(rows / 16)
  int64_t offset = 0;  // bytes to its first panel
  int64_t step = 0;    // bytes from panel to panel
};

class PackedWeight {
 public:
  PackedWeight() = default;
  // Copies and re-orders the sources; they may be freed afterwards. Parallel over panels. Moves each byte
  // once. Errors: invalid_argument for no source, null data, rows or k < 1, k % 32 != 0 of blocks, or
  // interleaved sources that are not two of equal rows; unsupported for i8 and i32; resource_exhausted.
  static Result<PackedWeight> pack(Context& context, std::span<const WeightSource> sources, int64_t k,
                                   Compute compute, PanelOrder order = PanelOrder::concatenated,
                                   Allocator& allocator = system_allocator());

  int64_t n() const { return n_; }  // outputs: the rows of all sources
  int64_t k() const { return k_; }
  int64_t bytes() const { return static_cast<int64_t>(storage_.size()); }
  PanelOrder order() const { return order_; }
  // True when every segment meets int8 activations, so that an input may come as QuantizedRows alone.
  bool takes_quantized() const;
  // True when some segment meets int8 activations.
  bool has_quantized() const;
  // "q4_1" or, of mixed sources, "q4_1+q8_0".
  std::string kinds() const;

  // Output row `row` as f32 [k]; exact (d * q + m with one rounding).
  void dequantize_row(int64_t row, float* out) const;

  std::span<const PanelSegment> segments() const { return segments_; }
  const uint8_t* panel(const PanelSegment& segment, int64_t index) const {
    return storage_.as<uint8_t>() + segment.offset + index * segment.step;
  }
  // Bytes of one panel of `kind`, and of its quants alone (blocks only).
  static int64_t panel_bytes(DType kind, int64_t k);
  static int64_t quant_bytes(DType kind, int64_t k);

 private:
  Buffer storage_;
  std::vector<PanelSegment> segments_;
  int64_t n_ = 0;
  int64_t k_ = 0;
  PanelOrder order_ = PanelOrder::concatenated;
};

}  // namespace tessera::ops
