#include "core/cuda/nccl.h"

#include <dlfcn.h>

#include "core/format.h"

namespace tessera::cuda {
namespace {

constexpr int kLeast = 21000, kNext = 30000;

Status missing(const std::string& message) {
  return Status(StatusCode::unavailable, message);
}

// Fills `to` with the function `name`; why notes the first that is not there.
template <typename Function>
void resolve(void* handle, const char* name, Function& to, const char*& absent) {
  to = reinterpret_cast<Function>(dlsym(handle, name));
  if (to == nullptr && absent == nullptr) absent = name;
}

}  // namespace

Result<Nccl> load_nccl(const char* library) {
  // Never closed: communicators and NCCL's own threads may outlive every owner.
  void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return missing(
        format("NCCL is not available: {} could not be loaded ({}); install libnccl2 or the wheel "
               "nvidia-nccl-cu13, and have its folder in LD_LIBRARY_PATH",
               library, dlerror()));
  }
  Nccl n;
  int (*get_version)(int*) = nullptr;
  const char* absent = nullptr;
  resolve(handle, "ncclGetVersion", get_version, absent);
  resolve(handle, "ncclGetUniqueId", n.get_unique_id, absent);
  resolve(handle, "ncclCommInitRank", n.comm_init_rank, absent);
  resolve(handle, "ncclCommDestroy", n.comm_destroy, absent);
  resolve(handle, "ncclAllReduce", n.all_reduce, absent);
  resolve(handle, "ncclAllGather", n.all_gather, absent);
  resolve(handle, "ncclReduceScatter", n.reduce_scatter, absent);
  resolve(handle, "ncclBroadcast", n.broadcast, absent);
  resolve(handle, "ncclSend", n.send, absent);
  resolve(handle, "ncclRecv", n.receive, absent);
  resolve(handle, "ncclGroupStart", n.group_start, absent);
  resolve(handle, "ncclGroupEnd", n.group_end, absent);
  resolve(handle, "ncclGetErrorString", n.get_error_string, absent);
  if (absent != nullptr) {
    return missing(
        format("NCCL is not available: {} has no {}; install NCCL 2.10 or later", library, absent));
  }
  const int result = get_version(&n.version);
  if (result != 0) {
    return missing(format("NCCL is not available: ncclGetVersion of {} gave {} ({})", library, result,
                          n.get_error_string(result)));
  }
  if (n.version < kLeast || n.version >= kNext) {
    return missing(format("NCCL is not available: {} is version {}.{}.{}; it must be 2.10 or a later 2",
                          library, n.version / 10000, n.version / 100 % 100, n.version % 100));
  }
  return n;
}

Result<const Nccl*> nccl() {
  static const Result<Nccl>* const loaded = new Result<Nccl>(load_nccl("libnccl.so.2"));
  if (!loaded->ok()) return loaded->status();
  return &**loaded;
}

Status nccl_status(const Nccl& nccl, int result, const std::string& what) {
  if (result == 0) return {};
  return Status(StatusCode::internal,
                format("{}: NCCL error {} ({})", what, result, nccl.get_error_string(result)));
}

}  // namespace tessera::cuda
