// forward over the shapes of flash-attn's own tests, which are odd on purpose, by its rule (see
// dense_fixture.h).
#include "tests/attention/dense_fixture.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 31337;

struct Shape {
  int64_t rows, keys;
};
constexpr Shape kShapes[] = {{113, 203}, {128, 217},   {113, 211},  {108, 256}, {256, 512}, {512, 256},
                             {1, 147},   {1, 239},     {3, 799},    {127, 512}, {127, 513}, {1, 128},
                             {1, 339},   {3, 1024},    {64, 800},   {64, 256},  {64, 2048}, {16, 20000},
                             {1, 40000}, {1023, 1024}, {1024, 1023}};
constexpr int kDims[] = {32, 40, 64, 72, 96, 128, 160, 192, 224, 256};

class ShapesTest : public ::testing::TestWithParam<DType> {};

TEST_P(ShapesTest, EveryShapeCausalAndNotWithHeadsOfEveryKind) {
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};
  int turn = 0;
  for (const Shape& shape : kShapes) {
    for (const bool causal : {false, true}) {
      // The large ones are run once.
      if (shape.rows * shape.keys > 300'000 && causal != (turn % 2 == 0)) continue;
      const int dim = kDims[turn % std::size(kDims)];
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.keys) + ", head_dim " +
                   std::to_string(dim) + (causal ? ", causal" : ", full"));
      DenseCase c(GetParam(), 1, shape.rows, shape.keys, 2, dim, kSeed + static_cast<uint32_t>(turn));
      c.p.mask.causal = causal;
      if (turn % 3 == 1) c.add(Feature::grouped);
      c.fill();
      ASSERT_TRUE(c.run(context).ok());
      c.check();
      ++turn;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ShapesTest, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
