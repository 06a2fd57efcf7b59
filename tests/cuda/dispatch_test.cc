// Which kernel a problem gets on a device, and the one line that says why none does. Needs no GPU.
#include "attention/cuda/dispatch.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera::attention::cuda {
namespace {

using tessera::cuda::DeviceProperties;

DeviceProperties device(int major, int minor, int64_t shared_bytes) {
  DeviceProperties d;
  d.name = "GPU of the test";
  d.major = major;
  d.minor = minor;
  d.multiprocessors = 100;
  d.shared_bytes = shared_bytes;
  return d;
}

AttentionProblem problem() {
  AttentionProblem p;
  p.seqlen_q = p.seqlen_k = 100;
  p.heads = p.kv_heads = 2;
  p.head_dim = p.v_head_dim = 128;
  p.dtype = DType::bf16;
  p.scale = 0.1f;
  return p;
}

void expect_line(const std::string& lines, const std::string& line) {
  EXPECT_NE(("\n" + lines).find("\n" + line), std::string::npos) << line << "\nnot in\n" << lines;
}

TEST(CudaDispatch, HopperTakesItsOwnKernelAndKeepsTheOther) {
  const std::string lines = explain_on(device(9, 0, 232448), problem(), Pass::forward);
  expect_line(lines, "> sm90 prefill (TMA, wgmma): taken on GPU of the test (sm_90)");
  expect_line(lines, "  sm80 prefill (mma.sync): would do, but a faster kernel is there");
}

TEST(CudaDispatch, HopperSaysWhenItPacksAGroup) {
  AttentionProblem p = problem();
  p.batch = 64;
  p.seqlen_q = 17;
  p.seqlen_k = 4096;
  p.heads = 32;
  p.kv_heads = 8;
  expect_line(explain_on(device(9, 0, 232448), p, Pass::forward),
              "> sm90 prefill (TMA, wgmma): taken on GPU of the test (sm_90), the 4 query heads of a kv head "
              "packed into one tile");
  p.seqlen_q = 4096;
  expect_line(explain_on(device(9, 0, 232448), p, Pass::forward),
              "> sm90 prefill (TMA, wgmma): taken on GPU of the test (sm_90)\n");
}

TEST(CudaDispatch, AmpereAndLaterTakeTheGeneralOne) {
  for (const auto& [major, minor] : {std::pair{8, 0}, std::pair{8, 9}, std::pair{12, 0}}) {
    const std::string sm = std::to_string(10 * major + minor);
    const std::string lines = explain_on(device(major, minor, 101376), problem(), Pass::forward);
    expect_line(lines,
                "  sm90 prefill (TMA, wgmma): sm90 prefill is for sm_90, device GPU of the test is sm_" + sm);
    expect_line(lines, "> sm80 prefill (mma.sync): taken on GPU of the test (sm_" + sm + ")");
  }
}

TEST(CudaDispatch, AnOlderArchitectureIsNamed) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const std::string lines = explain_on(device(7, 5, 65536), problem(), pass);
    EXPECT_EQ(lines.find('>'), std::string::npos) << lines;
    EXPECT_NE(lines.find("device GPU of the test is sm_75; these kernels need sm_80 or later"),
              std::string::npos)
        << lines;
  }
}

TEST(CudaDispatch, TooLittleSharedMemoryIsNamed) {
  AttentionProblem p = problem();
  p.head_dim = p.v_head_dim = 256;
  const std::string lines = explain_on(device(8, 0, 16384), p, Pass::forward);
  EXPECT_EQ(lines.find('>'), std::string::npos) << lines;
  EXPECT_NE(lines.find("bytes of shared memory; device GPU of the test has 16384"), std::string::npos)
      << lines;
}

}  // namespace
}  // namespace tessera::attention::cuda
