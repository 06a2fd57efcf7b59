// forward over the largest shapes of flash-attn's own tests, by its rule (see dense_fixture.h): 2,048 x 2,048
// at blocks of rows, and caches of 131,072 keys.
#include "tests/attention/dense_fixture.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 2048;

// Rows [first, first + rows) of a case that has run, with the keys that they may see, as a case of their own:
// what they see does not depend on the other rows, so neither does what they should be.
void check_rows(const DenseCase& whole, int64_t first, int64_t rows) {
  SCOPED_TRACE("rows from " + std::to_string(first));
  const AttentionProblem& p = whole.p;
  const int64_t keys = p.mask.causal ? p.seqlen_k - p.seqlen_q + first + rows : p.seqlen_k;
  DenseCase part(p.dtype, 1, rows, keys, p.heads, p.head_dim, 0);
  part.p.kv_heads = p.kv_heads;
  part.p.mask.causal = p.mask.causal;
  part.fill();
  const auto copy = [](const DenseTensor& from, int64_t first_row, int64_t count, DenseTensor& to) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t h = 0; h < to.heads(); ++h) {
        for (int64_t d = 0; d < to.dim(); ++d) to.set(0, r, h, d, from.at(0, first_row + r, h, d));
      }
    }
  };
  copy(whole.q, first, rows, part.q);
  copy(whole.o, first, rows, part.o);
  copy(whole.k, 0, keys, part.k);
  copy(whole.v, 0, keys, part.v);
  for (int64_t h = 0; h < p.heads; ++h) {
    for (int64_t r = 0; r < rows; ++r) {
      part.lse[static_cast<size_t>(h * rows + r)] =
          whole.lse[static_cast<size_t>(h * p.seqlen_q + first + r)];
    }
  }
  part.check();
}

class LargeShapesTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { std::printf("seed: %u\n", kSeed); }
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};
};

TEST_P(LargeShapesTest, SquaresOf2048AtEveryHeadDim) {
  uint32_t turn = static_cast<uint32_t>(GetParam());
  for (const int dim : {32, 40, 64, 72, 96, 128, 160, 192, 224, 256}) {
    SCOPED_TRACE("head_dim " + std::to_string(dim));
    DenseCase c(GetParam(), 1, 2048, 2048, 2, dim, kSeed + turn);
    c.p.mask.causal = turn++ % 2 == 0;
    c.add(Feature::grouped);
    c.fill();
    ASSERT_TRUE(c.run(context).ok());
    for (const int64_t first : {0, 1007, 2040}) check_rows(c, first, 8);
  }
}

TEST_P(LargeShapesTest, CachesOf131072Keys) {
  for (const int64_t rows : {1, 16}) {
    SCOPED_TRACE(std::to_string(rows) + " rows");
    DenseCase c(GetParam(), 1, rows, 131072, 1, 64, kSeed);
    c.p.mask.causal = rows > 1;
    c.fill();
    ASSERT_TRUE(c.run(context).ok());
    check_rows(c, 0, 1);
    if (rows > 1) check_rows(c, rows - 1, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, LargeShapesTest, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
