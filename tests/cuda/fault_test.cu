// What is said after a kernel has faulted, which costs the process its context: each case runs in a process
// of its own.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/cuda/device.h"
#include "tessera/attention.h"
#include "tessera/cuda.h"

namespace tessera {
namespace {

__global__ void write_to(int* address) {
  *address = 1;
}

// One line that names the error, and that only a new process helps.
bool says_so(const char* what, const Status& status) {
  std::fprintf(stderr, "%s: %s\n", what, status.ok() ? "ok" : status.message().c_str());
  return status.code() == StatusCode::internal &&
         status.message().find("cudaErrorIllegalAddress") != std::string::npos &&
         status.message().find("start a new process") != std::string::npos &&
         status.message().find('\n') == std::string::npos;
}

// Faults, then calls what a program may call; the exit code is the number of calls that did not say so.
[[noreturn]] void fault_and_go_on() {
  int silent = 0;
  {
    const auto expect = [&](const char* what, const Status& status) {
      silent += says_so(what, status) ? 0 : 1;
    };
    const Result<CudaContext> context = CudaContext::create();
    const Result<cuda::DeviceBuffer> memory = cuda::DeviceBuffer::create(1 << 16, "test");
    if (!context.ok() || !memory.ok()) std::exit(100);
    const cuda::Stream stream = cuda::Stream::of(context->stream());
    write_to<<<1, 1, 0, static_cast<cudaStream_t>(stream.handle())>>>(reinterpret_cast<int*>(16));
    if (!cuda::launched("write_to", "address 16").ok()) std::exit(101);
    expect("synchronize", context->synchronize());
    write_to<<<1, 1, 0, static_cast<cudaStream_t>(stream.handle())>>>(memory->as<int>());
    const Status next = cuda::launched("write_to", "memory of its own");
    expect("launch", next);
    if (next.message().find(
            "kernel write_to for memory of its own was not launched, because an earlier one") != 0)
      ++silent;
    expect("allocation", cuda::DeviceBuffer::create(64, "more").status());
    expect("stream", cuda::Stream::create().status());
    attention::AttentionProblem p;
    p.seqlen_q = p.seqlen_k = 4;
    p.heads = p.kv_heads = 1;
    p.head_dim = p.v_head_dim = 64;
    p.dtype = DType::bf16;
    p.scale = 1.0f;
    attention::ForwardTensors t;
    t.q = t.k = t.v = attention::contiguous<const void*>(memory->data(), 4, 1, 64);
    t.o = attention::contiguous<void*>(memory->as<char>() + 4096, 4, 1, 64);
    expect("forward", attention::forward(*context, p, t));
    expect("synchronize again", context->synchronize());
    // Going away must not abort.
  }
  std::exit(silent);
}

TEST(AfterAFault, EveryCallSaysThatTheContextIsLost) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // the child is started anew, not forked out of a context
  EXPECT_EXIT(fault_and_go_on(), ::testing::ExitedWithCode(0), "start a new process");
}

}  // namespace
}  // namespace tessera
