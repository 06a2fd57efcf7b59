// Threads, tiles and ragged edges of the linear ops. The arithmetic is in cpu/; the chain of one output lies
// in one kernel call, so nothing here can change its bits.
#include <algorithm>

#include "core/format.h"
#include "ops/cpu/kernels.h"
#include "ops/linear.h"

namespace tessera::ops {
namespace {

// Rows that share one pass over a panel. 64 quantised rows of k = 1536 are 147 KB: they stay in L2 beside a
// panel of 15 KB in L1, and a weight is read from memory once for every 64 rows.
constexpr int64_t kRowBlock = 64;
static_assert(kRowBlock % kTileRows == 0);

// What a call reads: f32 rows for plain segments, quantised rows for segments of blocks.
struct Input {
  const Kernels& table;
  const PackedWeight& weight;
  ConstRowsView x;
  QuantizedRowsView q;
  int64_t rows;

  int64_t row_blocks() const { return (rows + kRowBlock - 1) / kRowBlock; }
};

Input prepare(Context& context, const PackedWeight& weight, const LinearInput& x) {
  Input input{kernels(), weight, x.f32(), {}, x.rows()};
  if (x.quantized() != nullptr) {
    TESSERA_CHECK_MSG(weight.takes_quantized(), "plain weight panels need f32 rows");
    input.q = *x.quantized();
  } else if (weight.has_quantized()) {
    const int64_t bytes = QuantizedRowsView::bytes(x.rows(), weight.k());
    void* scratch = context.workspace(0).get(0, static_cast<size_t>(bytes));
    input.q = {static_cast<uint8_t*>(scratch), x.rows(), weight.k()};
    quantize(context, x.f32(), input.q);
  }
  TESSERA_CHECK(input.q.data == nullptr || input.q.k == weight.k());
  TESSERA_CHECK(input.x.data == nullptr || input.x.stride >= weight.k() || input.rows <= 1);
  return input;
}

BlockKernel block_kernel(const Kernels& table, DType kind) {
  return kind == DType::q4_0 ? table.q4_0 : kind == DType::q4_1 ? table.q4_1 : table.q8_0;
}
PlainKernel plain_kernel(const Kernels& table, DType kind) {
  return kind == DType::f32 ? table.f32 : kind == DType::f16 ? table.f16 : table.bf16;
}

// Panels [index, index + panels) of `segment` for the rows of one tile, all 16 lanes of each. `panels` is 1
// for blocks.
void panel_tile(const Input& input, const PanelSegment& segment, int64_t index, int panels, int64_t tile,
                float* y, int64_t y_stride, bool add) {
  const uint8_t* panel = input.weight.panel(segment, index);
  const int rows = static_cast<int>(std::min<int64_t>(kTileRows, input.rows - tile * kTileRows));
  if (info(segment.kind).quantized) {
    block_kernel(input.table,
                 segment.kind)({panel, input.q.blocks(), input.q.tile(tile), rows, y, y_stride, add});
  } else {
    plain_kernel(input.table,
                 segment.kind)({panel, segment.step, panels, input.weight.k(), input.x.row(tile * kTileRows),
                                input.x.stride, rows, y, y_stride, add});
  }
}

// The ragged last panel of a segment: all lanes into a scratch tile, the valid ones out.
void ragged_tile(const Input& input, const PanelSegment& segment, int64_t index, int64_t tile, int columns,
                 float* y, int64_t y_stride, bool add) {
  float scratch[kTileRows * kPanel];
  panel_tile(input, segment, index, 1, tile, scratch, kPanel, false);
  const int64_t rows = std::min<int64_t>(kTileRows, input.rows - tile * kTileRows);
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      float& out = y[r * y_stride + c];
      out = add ? out + scratch[r * kPanel + c] : scratch[r * kPanel + c];
    }
  }
}

int columns_of(const PanelSegment& segment, int64_t index) {
  return static_cast<int>(std::min<int64_t>(kPanel, segment.rows - index * kPanel));
}

// Rows of one row block as tiles [first, end).
struct TileRange {
  int64_t first, end;
};
TileRange tiles_of(const Input& input, int64_t row_block) {
  const int64_t tiles = (input.rows + kTileRows - 1) / kTileRows;
  const int64_t first = row_block * (kRowBlock / kTileRows);
  return {first, std::min(first + kRowBlock / kTileRows, tiles)};
}

// Few rows: four panels at a time are ~20 KB, enough to hide the counter. Many rows: two, so that stealing
// balances.
int64_t grain_of(const Input& input) {
  return input.rows <= kTileRows ? 4 : 2;
}

void run_linear(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y, bool add) {
  TESSERA_CHECK(y.rows >= x.rows() && (y.stride >= weight.n() || y.rows <= 1));
  if (x.rows() == 0) return;
  const Input input = prepare(context, weight, x);
  for (const PanelSegment& segment : weight.segments()) {
    const bool plain = !info(segment.kind).quantized;
    // Row block by row block, so that a thread keeps its rows in L2 and streams panels past them.
    context.pool.parallel_for(
        input.row_blocks() * segment.panels, grain_of(input), [&](int64_t begin, int64_t end, int) {
          for (int64_t item = begin; item < end;) {
            const int64_t index = item % segment.panels;
            const TileRange tiles = tiles_of(input, item / segment.panels);
            const int columns = columns_of(segment, index);
            // Two plain panels share each broadcast of an activation.
            const bool pair = plain && item + 1 < end && index + 1 < segment.panels &&
                              columns_of(segment, index + 1) == kPanel;
            for (int64_t tile = tiles.first; tile < tiles.end; ++tile) {
              float* out = y.row(tile * kTileRows) + segment.first + index * kPanel;
              if (columns == kPanel) {
                panel_tile(input, segment, index, pair ? 2 : 1, tile, out, y.stride, add);
              } else {
                ragged_tile(input, segment, index, tile, columns, out, y.stride, add);
              }
            }
            item += pair ? 2 : 1;
          }
        });
  }
}

// gate and up of columns [32 pair, 32 pair + 32) for one tile, both [8][32], then silu(gate) * up over gate.
void gate_up_tile(const Input& input, int64_t pair, int64_t tile, float* gate, float* up) {
  constexpr int kColumns = 2 * kPanel;
  const std::span<const PanelSegment> segments = input.weight.segments();
  for (int half = 0; half < 2; ++half) {
    const int64_t index = pair * 2 + half;
    if (index == segments[0].panels) break;
    panel_tile(input, segments[0], index, 1, tile, gate + half * kPanel, kColumns, false);
    panel_tile(input, segments[1], index, 1, tile, up + half * kPanel, kColumns, false);
  }
  const int64_t rows = std::min<int64_t>(kTileRows, input.rows - tile * kTileRows);
  input.table.silu_mul(gate, up, rows * kColumns, gate);
}

// Calls epilogue(tile [8][32], first column, first row, rows) for every tile of silu(gate) * up.
template <typename Epilogue>
void run_gate_up(Context& context, const Input& input, Epilogue&& epilogue) {
  const std::span<const PanelSegment> segments = input.weight.segments();
  TESSERA_CHECK(input.weight.order() == PanelOrder::interleaved && segments.size() == 2);
  const int64_t pairs = (segments[0].panels + 1) / 2;
  const int64_t grain = std::max<int64_t>(1, grain_of(input) / 2);
  context.pool.parallel_for(input.row_blocks() * pairs, grain, [&](int64_t begin, int64_t end, int) {
    // Zeros where an odd last panel leaves 16 columns unwritten.
    alignas(64) float gate[kTileRows * 2 * kPanel] = {};
    alignas(64) float up[kTileRows * 2 * kPanel] = {};
    for (int64_t item = begin; item < end; ++item) {
      const TileRange tiles = tiles_of(input, item / pairs);
      for (int64_t tile = tiles.first; tile < tiles.end; ++tile) {
        gate_up_tile(input, item % pairs, tile, gate, up);
        const int64_t rows = std::min<int64_t>(kTileRows, input.rows - tile * kTileRows);
        epilogue(gate, item % pairs * 2 * kPanel, tile * kTileRows, rows);
      }
    }
  });
}

}  // namespace

void linear(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y) {
  run_linear(context, weight, x, y, false);
}

void linear_add(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y) {
  run_linear(context, weight, x, y, true);
}

void gate_up_silu(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y) {
  const int64_t columns = weight.n() / 2;
  TESSERA_CHECK(y.rows >= x.rows() && (y.stride >= columns || y.rows <= 1));
  if (x.rows() == 0) return;
  const Input input = prepare(context, weight, x);
  run_gate_up(context, input, [&](const float* tile, int64_t first, int64_t row, int64_t rows) {
    const int64_t width = std::min<int64_t>(2 * kPanel, columns - first);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(tile + r * 2 * kPanel, width, y.row(row + r) + first);
  });
}

void gate_up_silu(Context& context, const PackedWeight& weight, const LinearInput& x, QuantizedRows& y) {
  const int64_t columns = weight.n() / 2;
  TESSERA_CHECK_MSG(columns % kQuantBlock == 0, format("{} columns are not whole blocks of 32", columns));
  y.resize(x.rows(), columns);
  if (x.rows() == 0) return;
  const Input input = prepare(context, weight, x);
  static_assert(2 * kPanel == kQuantBlock);
  run_gate_up(context, input, [&](const float* tile, int64_t first, int64_t row, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      QuantizedRowPointer out = y.view().row(row + r);
      out.q += first / kQuantBlock * out.step;
      out.f += first / kQuantBlock * out.step;
      input.table.quantize(tile + r * 2 * kPanel, 1, out);
    }
  });
}

std::string explain_linear(const PackedWeight& weight, int64_t rows) {
  std::string text;
  for (const PanelSegment& segment : weight.segments()) {
    const int tile = static_cast<int>(std::min<int64_t>(rows, kTileRows));
    text += format("{}{}:{}:{}x{}", text.empty() ? "" : " ", name(segment.kind), kernels().isa, tile,
                   info(segment.kind).quantized ? kPanel : 2 * kPanel);
  }
  return text;
}

}  // namespace tessera::ops
