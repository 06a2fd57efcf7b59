// What the tests of step kernels share: a device's launch, which kernels it has, and comparisons of bits that
// say where they differ.
#pragma once

#include <optional>

#include "attention/cuda/sm80/decode/decode.h"
#include "attention/cuda/sm90/decode/decode.h"
#include "tests/cuda/support/paged_case.cuh"

namespace tessera::attention::cuda_test {

// Equal bits, or the first that are not.
inline void expect_same_bits(const std::vector<uint16_t>& got, const std::vector<uint16_t>& want,
                             const PagedShape& shape, const std::string& name) {
  ASSERT_EQ(got.size(), want.size()) << name;
  size_t differ = 0, first = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == want[i]) continue;
    if (differ++ == 0) first = i;
  }
  if (differ == 0) return;
  const size_t dim = size_t(shape.v_dim()) * shape.element_bytes() / 2, row = first / dim;
  ADD_FAILURE() << name << ": " << differ << " of " << got.size() << " values differ, first token "
                << row / size_t(shape.heads) << " head " << row % size_t(shape.heads) << " d " << first % dim
                << std::hex << " want 0x" << want[first] << " got 0x" << got[first];
}
inline void expect_same_lse(const std::vector<float>& got, const std::vector<float>& want,
                            const std::string& name) {
  ASSERT_EQ(got.size(), want.size()) << name;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &want[i], 4) == 0) continue;
    ADD_FAILURE() << name << ": lse " << i << " want " << want[i] << " got " << got[i];
    return;
  }
}

class StepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = tessera::cuda::Launch::create(0);
    ASSERT_TRUE(made.ok()) << made.status().message();
    launch_.emplace(std::move(made).value());
    if (launch_->device.sm() < 80) GTEST_SKIP() << "needs sm_80, this is sm_" << launch_->device.sm();
  }
  bool on_hopper() const { return launch_->device.sm() == 90; }
  void finish(const Status& status) {
    ASSERT_TRUE(status.ok()) << status.message();
    const Status done = launch_->stream.synchronize();
    ASSERT_TRUE(done.ok()) << done.message();
  }
  void run(PagedCase& c, const AttentionProblem& problem, const cuda::steps::DecodeTuning& tuning = {}) {
    c.clear();
    cudaDeviceSynchronize();
    finish(cuda::sm80::decode(*launch_, problem, c.view(), {}, c.tensors(), tuning));
  }
  // The sm_80 kernel against float64, and bit for bit against the sm_90 kernel where there is one that takes
  // the case.
  void check(PagedCase& c, const AttentionProblem& problem, const OracleFeatures& features,
             const std::string& name) {
    run(c, problem);
    if (HasFatalFailure()) return;
    c.check(features, name);
    if (!on_hopper() || c.shape.page % 8 != 0 || !cuda::sm90::supports_decode(problem).ok()) return;
    const auto got = c.output();
    const auto got_lse = c.output_lse();
    c.clear();
    cudaDeviceSynchronize();
    finish(cuda::sm90::decode(*launch_, problem, c.view(), {}, c.tensors()));
    if (HasFatalFailure()) return;
    expect_same_bits(got, c.output(), c.shape, name + ": sm_90's bits");
    expect_same_lse(got_lse, c.output_lse(), name + ": sm_90's bits");
  }
  void check(const PagedShape& shape, const std::string& name) {
    PagedCase c(shape);
    AttentionProblem problem = c.problem();
    problem.mask.causal = false;
    check(c, problem, {}, name);
  }
  std::optional<tessera::cuda::Launch> launch_;
};

}  // namespace tessera::attention::cuda_test
