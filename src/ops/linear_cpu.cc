// Threads, tiles and ragged edges of the linear ops. The arithmetic is in cpu/; the chain of one output lies
// in one kernel call, so nothing here can change its bits.
#include <algorithm>

#include "core/format.h"
#include "ops/cpu/kernels.h"
#include "ops/linear.h"

namespace tessera::ops {
namespace {

// Rows that share one pass over a pair of panels. 96 quantised rows of k = 1536 are 221 KB: they stay in L2
// beside two panels of 15 KB in L1, and a weight is read from memory once for every 96 rows.
constexpr int64_t kRowBlock = 96;
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
  const LinearKernels& linear = *table.linear;
  return kind == DType::q4_0 ? linear.q4_0 : kind == DType::q4_1 ? linear.q4_1 : linear.q8_0;
}
PlainKernel plain_kernel(const Kernels& table, DType kind) {
  const LinearKernels& linear = *table.linear;
  return kind == DType::f32 ? linear.f32 : kind == DType::f16 ? linear.f16 : linear.bf16;
}

int64_t rows_of_tile(const Input& input, int64_t tile) {
  return std::min<int64_t>(kTileRows, input.rows - tile * kTileRows);
}

// All 16 lanes of `panels` panels from `panel` on, for the rows of one tile.
struct Output {
  float* y;
  int64_t stride;  // from row to row
  int64_t step;    // from panel to panel
  bool add;
};
void panel_tile(const Input& input, DType kind, const uint8_t* panel, int64_t panel_step, int panels,
                int64_t tile, const Output& out) {
  const Tile work{panel, panel_step, panels,   static_cast<int>(rows_of_tile(input, tile)),
                  out.y, out.stride, out.step, out.add};
  if (info(kind).quantized) {
    block_kernel(input.table, kind)(work, {input.q.tile(tile), input.q.blocks()});
  } else {
    plain_kernel(input.table, kind)(work, {input.x.row(tile * kTileRows), input.x.stride, input.weight.k()});
  }
}

int columns_of(const PanelSegment& segment, int64_t index) {
  return static_cast<int>(std::min<int64_t>(kPanel, segment.rows - index * kPanel));
}

// The ragged last panel of a segment: all lanes into a scratch tile, the valid ones out.
void ragged_tile(const Input& input, const PanelSegment& segment, int64_t index, int64_t tile,
                 const Output& out) {
  float scratch[kTileRows * kPanel];
  panel_tile(input, segment.kind, input.weight.panel(segment, index), 0, 1, tile,
             {scratch, kPanel, 0, false});
  for (int64_t r = 0; r < rows_of_tile(input, tile); ++r) {
    for (int c = 0; c < columns_of(segment, index); ++c) {
      float& y = out.y[r * out.stride + c];
      y = out.add ? y + scratch[r * kPanel + c] : scratch[r * kPanel + c];
    }
  }
}

// Panels 2 pair and 2 pair + 1 of a segment; the second may be ragged or missing.
void pair_tile(const Input& input, const PanelSegment& segment, int64_t pair, int64_t tile,
               const Output& out) {
  const int64_t first = pair * 2, end = std::min(first + 2, segment.panels);
  const int64_t whole = columns_of(segment, end - 1) == kPanel ? end : end - 1;
  if (whole > first) {
    panel_tile(input, segment.kind, input.weight.panel(segment, first), segment.step,
               static_cast<int>(whole - first), tile, out);
  }
  if (whole < end) {
    ragged_tile(input, segment, whole, tile,
                {out.y + (whole - first) * out.step, out.stride, out.step, out.add});
  }
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

// Pairs of panels taken at a time. Few rows: two are ~20 KB, enough to hide the counter; many rows: one, so
// that stealing balances.
int64_t grain_of(const Input& input) {
  return input.rows <= kTileRows ? 2 : 1;
}

void run_linear(Context& context, const PackedWeight& weight, const LinearInput& x, RowsView y, bool add) {
  TESSERA_CHECK(y.rows >= x.rows() && (y.stride >= weight.n() || y.rows <= 1));
  if (x.rows() == 0) return;
  const Input input = prepare(context, weight, x);
  for (const PanelSegment& segment : weight.segments()) {
    const int64_t pairs = (segment.panels + 1) / 2;
    // Row block by row block, so that a thread keeps its rows in L2 and streams panels past them.
    const auto work = [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t pair = item % pairs;
        const TileRange tiles = tiles_of(input, item / pairs);
        for (int64_t tile = tiles.first; tile < tiles.end; ++tile) {
          float* out = y.row(tile * kTileRows) + segment.first + pair * 2 * kPanel;
          pair_tile(input, segment, pair, tile, {out, y.stride, kPanel, add});
        }
      }
    };
    context.pool.parallel_for(input.row_blocks() * pairs, grain_of(input), work);
  }
}

// gate and up of columns [32 pair, 32 pair + 32) for one tile, both [6][32], then silu(gate) * up over gate.
constexpr int kPairColumns = 2 * kPanel;
struct alignas(64) GateUp {
  // Zero at first, for the 16 columns that an odd last panel leaves unwritten.
  float gate[kTileRows * kPairColumns] = {};
  float up[kTileRows * kPairColumns] = {};
};
void gate_up_tile(const Input& input, int64_t pair, int64_t tile, GateUp& out) {
  const PanelSegment& gate = input.weight.segments()[0];
  const PanelSegment& up = input.weight.segments()[1];
  for (int64_t index = pair * 2; index < std::min(pair * 2 + 2, gate.panels); ++index) {
    float* column = out.gate + index % 2 * kPanel;
    const uint8_t* panel = input.weight.panel(gate, index);
    // Neighbours in memory, so one call of two panels where the kinds agree.
    const bool together = gate.kind == up.kind;
    panel_tile(input, gate.kind, panel, up.offset - gate.offset, together ? 2 : 1, tile,
               {column, kPairColumns, out.up - out.gate, false});
    if (!together) {
      panel_tile(input, up.kind, input.weight.panel(up, index), 0, 1, tile,
                 {out.up + index % 2 * kPanel, kPairColumns, 0, false});
    }
  }
  input.table.silu_mul(out.gate, out.up, rows_of_tile(input, tile) * kPairColumns, out.gate);
}

// Calls epilogue(tile [6][32], first column, first row, rows) for every tile of silu(gate) * up.
template <typename Epilogue>
void run_gate_up(Context& context, const Input& input, Epilogue&& epilogue) {
  const std::span<const PanelSegment> segments = input.weight.segments();
  TESSERA_CHECK(input.weight.order() == PanelOrder::interleaved && segments.size() == 2);
  const int64_t pairs = (segments[0].panels + 1) / 2;
  context.pool.parallel_for(input.row_blocks() * pairs, 1, [&](int64_t begin, int64_t end, int) {
    GateUp scratch;
    for (int64_t item = begin; item < end; ++item) {
      const TileRange tiles = tiles_of(input, item / pairs);
      for (int64_t tile = tiles.first; tile < tiles.end; ++tile) {
        gate_up_tile(input, item % pairs, tile, scratch);
        epilogue(scratch.gate, item % pairs * kPairColumns, tile * kTileRows, rows_of_tile(input, tile));
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
    const int64_t width = std::min<int64_t>(kPairColumns, columns - first);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(tile + r * kPairColumns, width, y.row(row + r) + first);
  });
}

void gate_up_silu(Context& context, const PackedWeight& weight, const LinearInput& x, QuantizedRows& y) {
  const int64_t columns = weight.n() / 2;
  TESSERA_CHECK_MSG(columns % kQuantBlock == 0, format("{} columns are not whole blocks of 32", columns));
  y.resize(x.rows(), columns);
  if (x.rows() == 0) return;
  const Input input = prepare(context, weight, x);
  static_assert(kPairColumns == kQuantBlock);
  run_gate_up(context, input, [&](const float* tile, int64_t first, int64_t row, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      QuantizedRowPointer out = y.view().row(row + r);
      out.q += first / kQuantBlock * out.step;
      out.f += first / kQuantBlock * out.step;
      input.table.quantize(tile + r * kPairColumns, 1, out);
    }
  });
}

std::string explain_linear(const PackedWeight& weight, int64_t rows) {
  std::string text;
  for (const PanelSegment& segment : weight.segments()) {
    const int tile = static_cast<int>(std::min<int64_t>(rows, kTileRows));
    text +=
        format("{}{}:{}:{}x{}", text.empty() ? "" : " ", name(segment.kind), kernels().isa, tile, 2 * kPanel);
  }
  return text;
}

}  // namespace tessera::ops
