// NCCL without its headers: the collectives between GPUs, found at run time as the driver is. Nothing links
// libnccl; where it is missing, whoever asks gets `unavailable` with what to install, and everything else
// runs.
#pragma once

#include <cstddef>
#include <string>

#include "tessera/status.h"

namespace tessera::cuda {

struct NcclUniqueId {
  char bytes[128];
};
using NcclCommunicator = struct NcclCommunicatorOpaque*;
enum class NcclType : int {
  i8 = 0,
  u8 = 1,
  i32 = 2,
  u32 = 3,
  i64 = 4,
  u64 = 5,
  f16 = 6,
  f32 = 7,
  f64 = 8,
  bf16 = 9
};
enum class NcclReduction : int { sum = 0, product = 1, max = 2, min = 3, average = 4 };

// The functions of a loaded NCCL, as nccl.h specifies each. They return ncclResult_t, which nccl_status()
// turns into a Status. Streams are cudaStream_t; counts are in elements; buffers lie on the device that was
// current when the communicator was made.
struct Nccl {
  int version = 0;  // 10000 * major + 100 * minor + patch

  int (*get_unique_id)(NcclUniqueId* id) = nullptr;
  // Waits for all ranks: from threads or processes of their own, or between group_start and group_end.
  int (*comm_init_rank)(NcclCommunicator* communicator, int ranks, NcclUniqueId id, int rank) = nullptr;
  int (*comm_destroy)(NcclCommunicator communicator) = nullptr;
  int (*all_reduce)(const void* send, void* receive, size_t count, NcclType type, NcclReduction reduction,
                    NcclCommunicator communicator, void* stream) = nullptr;
  // receive: ranks * count.
  int (*all_gather)(const void* send, void* receive, size_t count, NcclType type,
                    NcclCommunicator communicator, void* stream) = nullptr;
  // send: ranks * count.
  int (*reduce_scatter)(const void* send, void* receive, size_t count, NcclType type, NcclReduction reduction,
                        NcclCommunicator communicator, void* stream) = nullptr;
  int (*broadcast)(const void* send, void* receive, size_t count, NcclType type, int root,
                   NcclCommunicator communicator, void* stream) = nullptr;
  int (*send)(const void* send, size_t count, NcclType type, int peer, NcclCommunicator communicator,
              void* stream) = nullptr;
  int (*receive)(void* receive, size_t count, NcclType type, int peer, NcclCommunicator communicator,
                 void* stream) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  const char* (*get_error_string)(int result) = nullptr;
};

// libnccl.so.2 of the loader's search path (or one that the process has already, as PyTorch's), loaded once
// and kept. unavailable when it is missing, lacks a function, or is older than 2.10 (the first with bf16 and
// averages) or not of major version 2. Thread-safe.
Result<const Nccl*> nccl();
// The same from a library of another name or path, loaded anew.
Result<Nccl> load_nccl(const char* library);

// ok for ncclSuccess; otherwise `what`, NCCL's number and its words. An operation still in progress, which
// only communicators made non-blocking report, is an error here.
Status nccl_status(const Nccl& nccl, int result, const std::string& what);

}  // namespace tessera::cuda
