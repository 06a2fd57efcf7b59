// The sm_80 backward without a GPU, as step_emulated_test.cc has the step kernels: every feature against the
// reference's gradients, by the rule of the GPU's test.
#include "attention/cuda/sm80/backward/backward.h"
#include "tests/attention/backward_fixture.h"
#include "tests/attention/dense_fixture.h"
#include "tests/cuda/emulator/case.h"

namespace tessera::attention::cuda {
namespace {

using emulated::kSeed;

class EmulatedBackward : public ::testing::Test {
 protected:
  EmulatedBackward() {
    launch_.device.minor = 0, launch_.device.shared_bytes = 163 * 1024;  // tiles for the A100's
  }
  void check(const DenseCase& dense, int64_t gap = 0) {
    BackwardCase c(dense.p, gap, kSeed);
    c.poison_unseen();
    AttentionProblem p = c.p;
    if (p.cu_seqlens_q != nullptr) {
      p.total_q = p.cu_seqlens_q[p.batch];
      p.total_k = p.cu_seqlens_k[p.batch];
    }
    // Aligned copies in the place of the device's.
    BackwardTensors t = c.tensors();
    std::vector<std::pair<CallerTensor*, tessera::cuda::DeviceBuffer>> copies;
    const auto place = [&](CallerTensor& tensor, auto& strided) {
      const size_t bytes = static_cast<size_t>(tensor.span() * tensor.element());
      copies.emplace_back(&tensor, tessera::cuda::DeviceBuffer::create(bytes, "rows").value());
      std::memcpy(copies.back().second.data(), tensor.memory.data(), bytes);
      strided.data = copies.back().second.data();
    };
    place(c.q, t.q), place(c.k, t.k), place(c.v, t.v), place(c.o, t.o), place(c.dout, t.dout);
    place(c.dq, t.dq), place(c.dk, t.dk), place(c.dv, t.dv);
    const Status status = sm80::backward(launch_, p, t);
    ASSERT_TRUE(status.ok()) << status.message();
    for (size_t i = 5; i < copies.size(); ++i) {
      CallerTensor& to = *copies[i].first;
      std::memcpy(to.memory.data(), copies[i].second.data(), static_cast<size_t>(to.span() * to.element()));
      to.read();
    }
    expect_gradients_of(c, p.dtype == DType::f32 ? DType::f16 : p.dtype);
  }
  tessera::cuda::Launch launch_ = emulated::small_device();
};

TEST_F(EmulatedBackward, EachFeature) {
  for (const Feature feature : kEveryFeature) {
    if (feature == Feature::ancestors) continue;  // forward only
    for (const DType dtype : {DType::bf16, DType::f32}) {
      SCOPED_TRACE(std::string(name(feature)) + " " + name(dtype));
      DenseCase c(dtype, 2, 37, 150, 2, 40, kSeed);
      c.add(feature);
      check(c, feature == Feature::gaps ? 8 : 0);
      if (HasFailure()) return;
    }
  }
}

// Several tiles of rows and of keys, so that their sums meet.
TEST_F(EmulatedBackward, PlainTiles) {
  for (const int dim : {64, 128}) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + " causal " + std::to_string(causal));
      DenseCase c(DType::bf16, 1, 280, 300, 1, dim, kSeed);
      c.p.mask.causal = causal;
      check(c);
    }
  }
}

// sm_86 and sm_89 have 99 KB.
TEST_F(EmulatedBackward, TilesForLittleSharedMemory) {
  launch_.device.minor = 9, launch_.device.shared_bytes = 99 * 1024;
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const int dim : {64, 96, 128, 192, 256}) {
      for (const bool masked : {false, true}) {
        SCOPED_TRACE(std::string(name(dtype)) + " dim " + std::to_string(dim) +
                     (masked ? " causal, dropout" : ""));
        DenseCase c(dtype, 1, 90, 150, 2, dim, kSeed);
        c.p.kv_heads = 1;
        c.p.mask.causal = masked;
        if (masked) c.add(Feature::dropout);
        if (dtype == DType::f32 && dim > 128) {
          const Status status = sm80::supports_backward(launch_.device, c.p);
          EXPECT_EQ(status.field(), "head_dim") << status.message();
          continue;
        }
        check(c);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(EmulatedBackward, NoRowsOrNoKeys) {
  for (const auto& [rows, keys] : {std::pair{0, 200}, {70, 0}, {70, 200}}) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(keys));
    check(DenseCase(DType::f16, 2, rows, keys, 2, 64, kSeed));
  }
}

}  // namespace
}  // namespace tessera::attention::cuda
