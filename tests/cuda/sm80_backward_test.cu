// The sm_80 backward against the double-precision reference by flash-attn's rule for gradients (three times
// the plain form's error), with NaN in all that must not be read, and the bits over repeats.
#include <optional>

#include "attention/cuda/sm80/backward/backward.h"
#include "tests/attention/backward_fixture.h"
#include "tests/cuda/support/dense_case.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 2207;

// Every gradient of c computed on the device.
Status run_backward(tessera::cuda::Launch& launch, const std::vector<char>& mask, BackwardCase& c) {
  const tessera::cuda::Stream& stream = launch.stream;
  const DeviceProblem problem(c.p, mask, stream);
  BackwardTensors t = c.tensors();
  std::vector<std::pair<CallerTensor*, std::unique_ptr<DeviceCopy>>> copies;
  const auto place = [&](CallerTensor& tensor, auto& strided) {
    const size_t bytes = static_cast<size_t>(tensor.span() * tensor.element());
    copies.emplace_back(&tensor, std::make_unique<DeviceCopy>(tensor.memory.data(), bytes, stream));
    strided.data = copies.back().second->data();
  };
  place(c.q, t.q), place(c.k, t.k), place(c.v, t.v), place(c.o, t.o), place(c.dout, t.dout);
  place(c.dq, t.dq), place(c.dk, t.dk), place(c.dv, t.dv);
  const DeviceCopy lse(c.lse.data(), c.lse.size() * 4, stream);
  t.lse = static_cast<const float*>(lse.data());
  TESSERA_RETURN_IF_ERROR(cuda::sm80::backward(launch, problem.problem(), t));
  for (size_t i = 5; i < copies.size(); ++i) {
    copies[i].second->read(copies[i].first->memory.data(), stream);
    copies[i].first->read();
  }
  return stream.synchronize();
}

class Sm80Backward : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    auto created = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(created.ok()) << created.status().message();
    launch_.emplace(std::move(*created));
  }
  // f32 is multiplied as tf32: its plain form rounds like f16, whose 11 bits tf32 has too.
  void run_and_check(const DenseCase& dense, int64_t gap = 0) {
    BackwardCase c(dense.p, gap, kSeed);
    c.poison_unseen();
    const Status status = run_backward(*launch_, dense.mask, c);
    ASSERT_TRUE(status.ok()) << status.message();
    expect_gradients_of(c, c.p.dtype == DType::f32 ? DType::f16 : c.p.dtype);
  }
  std::optional<tessera::cuda::Launch> launch_;
};

TEST_P(Sm80Backward, EachFeatureAndEachPair) {
  uint32_t seed = kSeed;
  for (const Feature a : kEveryFeature) {
    for (const Feature b : kEveryFeature) {
      if (b < a || b == Feature::ancestors) continue;
      SCOPED_TRACE(std::string(name(a)) + " and " + name(b) + ", seed " + std::to_string(seed));
      DenseCase c(GetParam(), 3, 37, 150, 2, 40, seed++);
      c.add(a);
      if (b != a) c.add(b);
      run_and_check(c, a == Feature::gaps || b == Feature::gaps ? 8 : 0);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Sm80Backward, EveryDimension) {
  for (const int dim : {8, 32, 64, 72, 96, 120, 128, 136, 192, 200, 256}) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " causal " + std::to_string(causal));
      DenseCase c(GetParam(), 1, 70, 133, 1, dim, kSeed);
      c.p.mask.causal = causal;
      c.p.v_head_dim = dim > 8 ? dim - 8 : dim;
      run_and_check(c);
      if (HasFailure()) return;
    }
  }
}

// The tiles of sm_86 and sm_89.
TEST_P(Sm80Backward, EveryDimensionInLittleSharedMemory) {
  launch_->device.shared_bytes = 99 * 1024;
  for (const int dim : {8, 64, 72, 96, 128, 136, 192, 256}) {
    if (GetParam() == DType::f32 && dim > 128) continue;  // refused
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " causal " + std::to_string(causal));
      DenseCase c(GetParam(), 2, 150, 333, 2, dim, kSeed);
      c.p.mask.causal = causal;
      run_and_check(c);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Sm80Backward, NoRowsOrNoKeysAfterAProblemThatHasThem) {
  for (const auto& [rows, keys] : {std::pair{70, 200}, {0, 200}, {70, 0}, {70, 200}}) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(keys));
    run_and_check(DenseCase(GetParam(), 2, rows, keys, 2, 64, kSeed));
  }
}

TEST_P(Sm80Backward, TheSameBitsEveryTime) {
  DenseCase dense(GetParam(), 2, 700, 900, 4, 64, kSeed);
  dense.p.kv_heads = 2;
  dense.p.mask.causal = true;
  // The gradients need no true o: any numbers go the same way.
  const auto tensor = [&](int64_t rows, int heads, uint32_t seed) {
    auto t = std::make_unique<DenseTensor>(dense.p.dtype, 2, rows, heads, 64, 0);
    std::mt19937 random(seed);
    t->fill(random);
    return t;
  };
  const auto q = tensor(700, 4, 1), k = tensor(900, 2, 2), v = tensor(900, 2, 3), o = tensor(700, 4, 4),
             dout = tensor(700, 4, 5), dq = tensor(700, 4, 6), dk = tensor(900, 2, 7), dv = tensor(900, 2, 8);
  const std::vector<float> lse(2 * 4 * 700, 6.0f);
  std::vector<std::vector<char>> first;
  for (int repeat = 0; repeat < 200; ++repeat) {
    const tessera::cuda::Stream& stream = launch_->stream;
    std::vector<std::unique_ptr<DeviceCopy>> copies;
    BackwardTensors t;
    const auto place = [&](const DenseTensor& from, auto& to) {
      const auto view = from.view();
      copies.push_back(std::make_unique<DeviceCopy>(from.bytes().data(), from.bytes().size(), stream));
      to = {copies.back()->data(), view.batch_stride, view.row_stride, view.head_stride};
    };
    place(*q, t.q), place(*k, t.k), place(*v, t.v), place(*o, t.o), place(*dout, t.dout);
    place(*dq, t.dq), place(*dk, t.dk), place(*dv, t.dv);
    const DeviceCopy sums(lse.data(), lse.size() * 4, stream);
    t.lse = static_cast<const float*>(sums.data());
    const Status status = cuda::sm80::backward(*launch_, dense.p, t);
    ASSERT_TRUE(status.ok()) << status.message();
    std::vector<std::vector<char>> got;
    for (const auto& [i, of] : {std::pair{5, &dq}, std::pair{6, &dk}, std::pair{7, &dv}}) {
      got.emplace_back((*of)->bytes().size());
      copies[static_cast<size_t>(i)]->read(got.back().data(), stream);
    }
    if (repeat == 0) first = got;
    ASSERT_EQ(first, got) << "repeat " << repeat;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Sm80Backward, ::testing::Values(DType::bf16, DType::f16, DType::f32),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
