// Tiles between global memory, shared memory and registers: what TMA loads bring for every kind of tensor map
// and box, element by element where swizzled_offset() says it lies; the same through ldmatrix, stmatrix and a
// TMA store, with zeros outside the tensor on the way in and nothing written there on the way out.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "attention/cuda/common/pipe.cuh"
#include "attention/cuda/common/ptx.cuh"
#include "attention/cuda/common/tile.cuh"
#include "attention/cuda/common/tma.h"
#include "tests/cuda/support/device_array.h"

namespace tessera::attention::cuda {
namespace {

using cuda_test::DeviceArray;

constexpr int kSharedBytes = 160 * 1024;

// How a tile is made of boxes. panel: a row_map() box [64 columns] each, `box_rows` high, panels of the whole
// tile one behind the other. whole: one tensor_map() box. panel_boxes: tensor_map() boxes of one panel.
// small: tensor_map() boxes of 16 whole rows, one behind the other, each a tile of 16 rows (decode over small
// pages). group: a group_map() box of a panel, `heads` heads inside of each row.
enum class Boxes { panel, whole, panel_boxes, small, group };

struct RoundTrip {
  CUtensorMap in, out;
  Boxes boxes;
  int box_rows, panels;
  int row, head, batch;
  bool hinted;  // with an L2 policy
  // [kRows][64 * panels] each: by address, by ldmatrix as operand A, as operand B, and transposed.
  uint16_t *elements, *rows, *columns, *transposed;
};

template <int kRows>
__global__ void __launch_bounds__(128, 1) round_trip(const __grid_constant__ RoundTrip p) {
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t barrier;
  const uint32_t tile = (shared_address(raw) + 1023) & ~1023u;
  const uint32_t out = tile + p.panels * kRows * 128;
  const uint32_t full = shared_address(&barrier);
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int columns = 64 * p.panels;
  const auto offset = [&](int row, int group) {
    if (p.boxes != Boxes::small) return swizzled_offset<kRows>(row, group);
    return row / 16 * (p.panels * 2048) + swizzled_offset<16>(row % 16, group);
  };
  if (thread == 0) {
    mbarrier_init(full, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (thread == 0) {
    prefetch_tensor_map(&p.in);
    mbarrier_arrive_expect(full, kRows * columns * 2);
    const uint64_t policy = policy_evict_first();
    for (int box = 0; box < kRows / p.box_rows; ++box) {
      const int row = p.row + box * p.box_rows;
      for (int panel = 0; panel < p.panels; ++panel) {
        const uint32_t to = tile + panel * (kRows * 128) + box * p.box_rows * 128;
        if (p.boxes == Boxes::panel) {
          tma_load_4d(to, &p.in, full, 64 * panel, row, p.head, p.batch);
        } else if (p.boxes == Boxes::group) {
          tma_load_4d(to, &p.in, full, 64 * panel, p.head, row, p.batch);
        } else if (p.boxes == Boxes::panel_boxes) {
          tma_load(to, &p.in, full, 0, row, panel, p.head, p.batch);
        } else if (panel == 0) {
          const uint32_t at = tile + box * p.box_rows * p.panels * 128;
          if (p.hinted) {
            tma_load(at, &p.in, full, 0, row, 0, p.head, p.batch, policy);
          } else {
            tma_load(at, &p.in, full, 0, row, 0, p.head, p.batch);
          }
        }
      }
    }
  }
  mbarrier_wait(full, 0);

  for (int i = thread; i < kRows * columns; i += 128) {
    const int row = i / columns, column = i % columns;
    uint16_t x;
    asm volatile("ld.shared.u16 %0, [%1];"
                 : "=h"(x)
                 : "r"(tile + offset(row, column / 8) + column % 8 * 2)
                 : "memory");
    p.elements[i] = x;
  }
  const auto put = [&](uint16_t* to, int row, int column, uint32_t pair) {
    to[row * columns + column] = static_cast<uint16_t>(pair);
    to[row * columns + column + 1] = static_cast<uint16_t>(pair >> 16);
  };
  for (int block = warp; block < kRows / 16; block += 4) {
    for (int step = 0; step < columns / 16; ++step) {
      uint32_t r[4];
      // Operand A, and the output's stmatrix: matrices 0 and 1 below each other, 2 and 3 beside them.
      const uint32_t at = offset(16 * block + (lane & 15), 2 * step + (lane >> 4));
      ldmatrix_x4(r, tile + at);
      for (int i = 0; i < 4; ++i)
        put(p.rows, 16 * block + lane / 4 + 8 * (i % 2), 16 * step + 2 * (lane % 4) + 8 * (i / 2), r[i]);
      stmatrix_x4(out + at, r[0], r[1], r[2], r[3]);
      ldmatrix_x4_transposed(r, tile + at);
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * block + 2 * (lane % 4) + 8 * (i % 2),
                  column = 16 * step + lane / 4 + 8 * (i / 2);
        p.transposed[row * columns + column] = static_cast<uint16_t>(r[i]);
        p.transposed[(row + 1) * columns + column] = static_cast<uint16_t>(r[i] >> 16);
      }
      // Operand B: matrices 0 and 1 beside each other, 2 and 3 below them.
      ldmatrix_x4(r,
                  tile + offset(16 * block + (lane & 7) + ((lane >> 4) << 3), 2 * step + ((lane >> 3) & 1)));
      for (int i = 0; i < 4; ++i)
        put(p.columns, 16 * block + lane / 4 + 8 * (i / 2), 16 * step + 2 * (lane % 4) + 8 * (i % 2), r[i]);
    }
  }
  fence_async_shared();
  __syncthreads();
  if (thread == 0) {
    for (int box = 0; box < kRows / p.box_rows; ++box) {
      const int row = p.row + box * p.box_rows;
      for (int panel = 0; panel < p.panels; ++panel) {
        const uint32_t from = out + panel * (kRows * 128) + box * p.box_rows * 128;
        if (p.boxes == Boxes::panel) {
          tma_store_4d(&p.out, from, 64 * panel, row, p.head, p.batch);
        } else if (p.boxes == Boxes::group) {
          tma_store_4d(&p.out, from, 64 * panel, p.head, row, p.batch);
        } else if (p.boxes == Boxes::panel_boxes) {
          tma_store(&p.out, from, 0, row, panel, p.head, p.batch);
        } else if (panel == 0) {
          tma_store(&p.out, out + box * p.box_rows * p.panels * 128, 0, row, 0, p.head, p.batch);
        }
      }
    }
    bulk_commit();
    bulk_wait_read<0>();
    bulk_wait<0>();
  }
}

// A strided tensor [batch, row, head, d]: gaps of 8 elements behind heads and rows.
struct Layout {
  int64_t batches, rows, heads, dim;
  int64_t head_stride() const { return dim + 8; }
  int64_t row_stride() const { return heads * head_stride() + 8; }
  int64_t batch_stride() const { return rows * row_stride() + 16; }
  size_t at(int64_t b, int64_t r, int64_t h, int64_t d) const {
    return static_cast<size_t>(b * batch_stride() + r * row_stride() + h * head_stride() + d);
  }
  size_t elements() const { return static_cast<size_t>(batches * batch_stride()); }
};

// Never 0, which is what lies outside the tensor.
uint16_t pattern(size_t index) {
  uint32_t x = static_cast<uint32_t>(index) * 0x9e3779b9u;
  x ^= x >> 15;
  return static_cast<uint16_t>(x | 1);
}

template <int kRows>
void check_tile(const Layout& layout, Boxes boxes, int box_rows, Promotion promotion, int first, int head,
                int batch, bool hinted = false, DType dtype = DType::bf16, int group = 1) {
  const std::string name =
      std::to_string(kRows) + " rows from " + std::to_string(first) + " of " + std::to_string(layout.rows) +
      ", dim " + std::to_string(layout.dim) + ", head " + std::to_string(head) + ", batch " +
      std::to_string(batch) + ", boxes " + std::to_string(static_cast<int>(boxes)) + " of " +
      std::to_string(box_rows) + (promotion == Promotion::none ? "" : ", promoted") +
      (hinted ? ", with a policy" : "") + (group > 1 ? ", " + std::to_string(group) + " heads a row" : "");
  std::vector<uint16_t> source(layout.elements());
  for (size_t i = 0; i < source.size(); ++i) source[i] = pattern(i);
  const DeviceArray<uint16_t> in(source), out(layout.elements());
  const int panels = static_cast<int>((layout.dim + 63) / 64), columns = 64 * panels;
  RoundTrip p{};
  const auto map = [&](CUtensorMap* to, const void* data) {
    const Strided<const void*> tensor{data, layout.batch_stride(), layout.row_stride(), layout.head_stride()};
    return boxes == Boxes::group ? group_map(to, "x", dtype, tensor, layout.batches, layout.rows,
                                             layout.heads, layout.dim, group, box_rows / group, promotion)
           : boxes == Boxes::panel
               ? row_map(to, "x", dtype, tensor, layout.batches, layout.rows, layout.heads, layout.dim,
                         box_rows, promotion)
               : tensor_map(to, "x", dtype, tensor, layout.batches, layout.rows, layout.heads, layout.dim,
                            box_rows, boxes == Boxes::panel_boxes ? 1 : panels, promotion);
  };
  const Status mapped_in = map(&p.in, in.data()), mapped_out = map(&p.out, out.data());
  ASSERT_TRUE(mapped_in.ok() && mapped_out.ok())
      << name << ": " << mapped_in.message() << mapped_out.message();
  p.boxes = boxes, p.box_rows = box_rows, p.panels = panels;
  p.row = first, p.head = head, p.batch = batch, p.hinted = hinted;
  const size_t count = static_cast<size_t>(kRows) * static_cast<size_t>(columns);
  const DeviceArray<uint16_t> elements(count), rows(count), by_columns(count), transposed(count);
  p.elements = elements.data(), p.rows = rows.data();
  p.columns = by_columns.data(), p.transposed = transposed.data();
  ASSERT_EQ(
      cudaFuncSetAttribute(round_trip<kRows>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      cudaSuccess);
  round_trip<kRows><<<1, 128, kSharedBytes>>>(p);
  if (!cuda_test::ran("round_trip", name)) return;

  std::vector<uint16_t> tile(count, 0), stored(layout.elements(), 0xffff);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < columns; ++column) {
      const int64_t its_row = first + row / group, its_head = head + row % group;
      if (its_row < 0 || its_row >= layout.rows || its_head >= layout.heads || column >= layout.dim) continue;
      const size_t at = layout.at(batch, its_row, its_head, column);
      tile[static_cast<size_t>(row * columns + column)] = source[at];
      stored[at] = source[at];
    }
  }
  const auto width = static_cast<size_t>(columns);
  cuda_test::expect_equal(name + ", by swizzled_offset", elements.read(), tile, width);
  cuda_test::expect_equal(name + ", ldmatrix A", rows.read(), tile, width);
  cuda_test::expect_equal(name + ", ldmatrix B", by_columns.read(), tile, width);
  cuda_test::expect_equal(name + ", ldmatrix transposed", transposed.read(), tile, width);
  // Rows of the whole tensor, so that an element outside the box, in a gap or behind the tensor is named.
  cuda_test::expect_equal(name + ", stored", out.read(), stored, static_cast<size_t>(layout.row_stride()));
}

class TileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = tessera::cuda::device_properties(0);
    ASSERT_TRUE(device.ok());
    if (device->sm() != 90) GTEST_SKIP() << "TMA is sm_90's";
  }
};

// The prefill kernels: boxes of a panel, as high as the tile or as a page's part of it, any head size.
TEST_F(TileTest, PanelsOfWholeTiles) {
  for (const int dim : {8, 40, 64, 72, 96, 128, 192, 256}) {
    const Layout layout{2, 200, 3, dim};
    for (const int first : {0, 64, 150, 199}) {
      check_tile<64>(layout, Boxes::panel, 64, Promotion::bytes_256, first, 2, 1);
      check_tile<80>(layout, Boxes::panel, 80, Promotion::bytes_256, first, 1, 0);
      check_tile<128>(layout, Boxes::panel, 128, Promotion::bytes_256, first, 0, 1);
      if (HasFailure()) return;
    }
  }
}
TEST_F(TileTest, PanelsOfPages) {
  for (const int dim : {64, 96, 128}) {
    for (const int box : {16, 32, 64})
      check_tile<128>({5, 64, 2, dim}, Boxes::panel, box, Promotion::bytes_256, 0, 1, 4);
    check_tile<80>({3, 80, 2, dim}, Boxes::panel, 16, Promotion::bytes_256, 0, 0, 2);
  }
  for (const int box : {8, 16, 32})
    check_tile<64>({4, 32, 2, 72}, Boxes::panel, box, Promotion::none, 0, 1, 3);
}
TEST_F(TileTest, RowsBehindTheTensorAreZerosAndNotStored) {
  check_tile<64>({1, 1, 1, 128}, Boxes::panel, 64, Promotion::bytes_256, 0, 0, 0);
  check_tile<64>({1, 40, 1, 128}, Boxes::panel, 64, Promotion::bytes_256, 64, 0,
                 0);  // none of its rows is there
  check_tile<128>({2, 777, 1, 128}, Boxes::panel, 128, Promotion::bytes_256, 768, 0, 0);
  check_tile<64>({2, 777, 1, 128}, Boxes::whole, 64, Promotion::none, 768, 0, 0);
}
// The decode and tree kernels: a tile in one box, in boxes of 8 rows of a panel, in boxes of 16 whole rows.
TEST_F(TileTest, WholeTiles) {
  for (const int dim : {64, 128, 256}) {
    for (const bool hinted : {false, true}) {
      check_tile<64>({3, 128, 2, dim}, Boxes::whole, 64, Promotion::none, 64, 1, 2, hinted);
      check_tile<64>({3, 100, 2, dim}, Boxes::whole, 64, Promotion::none, 64, 0, 1, hinted);
    }
  }
}
TEST_F(TileTest, BoxesOfAPanel) {
  for (const int dim : {64, 128, 256}) {
    for (const int box : {8, 16, 32}) {
      check_tile<64>({3, 64, 2, dim}, Boxes::panel_boxes, box, Promotion::none, 0, 1, 2);
      check_tile<64>({3, 40, 2, dim}, Boxes::panel_boxes, box, Promotion::none, 0, 0, 1);
    }
  }
}
TEST_F(TileTest, BoxesOfSixteenWholeRows) {
  for (const int dim : {64, 128, 256}) {
    for (const bool hinted : {false, true}) {
      check_tile<64>({3, 64, 2, dim}, Boxes::small, 16, Promotion::none, 0, 1, 2, hinted);
      check_tile<64>({3, 40, 2, dim}, Boxes::small, 16, Promotion::none, 0, 0, 1, hinted);
    }
  }
}
// Rows of a tile that are heads of a group.
TEST_F(TileTest, HeadsOfAGroupInsideOfRows) {
  for (const int dim : {64, 96, 128, 256}) {
    for (const int group : {2, 4, 8, 16}) {
      const auto check = [&](const Layout& layout, int first, int head, int batch) {
        check_tile<64>(layout, Boxes::group, 64, Promotion::bytes_256, first, head, batch, false, DType::bf16,
                       group);
      };
      check({2, 64, 2 * group, dim}, 0, group, 1);
      check({2, 41, 2 * group, dim}, 40, 0, 0);         // rows behind the tensor
      check({2, 64, 2 * group - 1, dim}, 8, group, 1);  // heads behind it
      if (HasFailure()) return;
    }
  }
}
TEST_F(TileTest, BothElementTypes) {
  check_tile<64>({2, 100, 2, 128}, Boxes::panel, 64, Promotion::bytes_256, 64, 1, 1, false, DType::f16);
  check_tile<64>({2, 100, 2, 128}, Boxes::whole, 64, Promotion::none, 64, 1, 1, false, DType::f16);
}

TEST_F(TileTest, MapsRefuseWhatTheFormatDoesNotHold) {
  const DeviceArray<uint16_t> memory(4096);
  const auto refused = [&](int64_t offset, int64_t row_stride, int64_t dim, bool rows, const char* text) {
    CUtensorMap map;
    const Strided<const void*> tensor{memory.data() + offset, 1024, row_stride, 64};
    const Status status =
        rows ? row_map(&map, "k", DType::bf16, tensor, 1, 4, 1, dim, 8, Promotion::none)
             : tensor_map(&map, "k", DType::bf16, tensor, 1, 4, 1, dim, 8, 1, Promotion::none);
    EXPECT_EQ(status.code(), StatusCode::unsupported);
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
  };
  for (const bool rows : {false, true}) {
    refused(1, 64, 64, rows, "must be a multiple of 16 bytes");
    refused(0, 65, 64, rows, "k's stride 65 must be a multiple of 8 elements");
    refused(0, -64, 64, rows, "k's stride -64");
    refused(0, int64_t{1} << 39, 64, rows, "2^39 - 1");
  }
  refused(0, 128, 72, false, "head_dim=72 must be at most 64 or a multiple of 64");
}

// bulk_load(): contiguous bytes, nothing beside them.
__global__ void bulk_kernel(const uint8_t* from, uint8_t* to, uint32_t bytes, uint32_t room) {
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ uint64_t barrier;
  const uint32_t full = shared_address(&barrier);
  for (uint32_t i = threadIdx.x; i < room; i += blockDim.x) memory[i] = 0x5a;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_barrier_init();
  }
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full, bytes);
    bulk_load(shared_address(memory) + 128, from, bytes, full, policy_evict_last());
  }
  while (!mbarrier_test(full, 0)) {
  }
  for (uint32_t i = threadIdx.x; i < room; i += blockDim.x) to[i] = memory[i];
}

TEST_F(TileTest, BulkLoadsBringTheirBytesAlone) {
  for (const uint32_t bytes : {16u, 48u, 1024u, 16384u}) {
    std::vector<uint8_t> source(bytes), want(bytes + 256, 0x5a);
    for (size_t i = 0; i < source.size(); ++i) want[128 + i] = source[i] = static_cast<uint8_t>(pattern(i));
    const DeviceArray<uint8_t> from(source), to(want.size());
    bulk_kernel<<<1, 128, want.size()>>>(from.data(), to.data(), bytes, bytes + 256);
    if (!cuda_test::ran("bulk_load", std::to_string(bytes) + " bytes")) return;
    cuda_test::expect_equal(std::to_string(bytes) + " bytes", to.read(), want, 16);
  }
}

}  // namespace
}  // namespace tessera::attention::cuda
