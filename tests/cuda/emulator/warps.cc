#include "tests/cuda/emulator/warps.h"

#include <setjmp.h>  // NOLINT: _setjmp, which leaves signals alone
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

namespace emulator {
namespace {

constexpr size_t kStack = 256 * 1024;

struct Copy {
  uint32_t to;
  const void* from;
  bool valid;
};
struct Fiber {
  ucontext_t context;  // how it begins; then `here`, since swapcontext asks the kernel each time
  jmp_buf here;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  int thread = 0;
  bool done = false;
  uint64_t shows = 0;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};
struct Warp {
  Shown values[2][32];
  int arrived = 0;
  uint64_t phase = 0;
};
struct Barrier {
  int arrived = 0, threads = 0;
  uint64_t phase = 0;
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
Barrier barriers[16];
ucontext_t scheduler;
jmp_buf scheduler_here;
Fiber* self = nullptr;
const std::function<void()>* body = nullptr;
unsigned char* shared_memory = nullptr;
size_t shared_bytes = 0;
int64_t steps = 0;  // that any fiber made
int threads_of_block = 0, block_of_grid = 0;

void yield() {
  if (_setjmp(self->here) == 0) _longjmp(scheduler_here, 1);
}
// The scheduler lets a fiber run until it waits.
void resume(Fiber& fiber) {
  self = &fiber;
  if (_setjmp(scheduler_here) != 0) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  swapcontext(&scheduler, &fiber.context);
}
void run_fiber() {
  (*body)();
  for (const auto& group : self->groups) {
    if (!group.empty()) fail("copies that nobody waited for");
  }
  self->done = true;
  yield();
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %d, thread %d)\n", what, block_of_grid,
               self != nullptr ? self->thread : -1);
  std::abort();
}

int thread() {
  return self->thread;
}
int lane() {
  return self->thread % 32;
}
int block_threads() {
  return threads_of_block;
}

void set_shared(unsigned char* memory, size_t bytes) {
  shared_memory = memory;
  shared_bytes = bytes;
}

void run_block(int block, int threads, const std::function<void()>& kernel) {
  body = &kernel;
  block_of_grid = block;
  threads_of_block = threads;
  std::memset(shared_memory, 0xff, shared_bytes);
  warps.assign(static_cast<size_t>(threads / 32), {});
  for (Barrier& b : barriers) b = {};
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fibers[static_cast<size_t>(i)];
    if (f.stack == nullptr) f.stack = std::make_unique<char[]>(kStack);
    f.thread = i;
    f.done = f.begun = false;
    f.shows = 0;
    f.open.clear();
    f.groups.clear();
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
  std::mt19937 random(static_cast<uint32_t>(block) + 1);
  int idle = 0;
  for (int alive = threads; alive > 0;) {
    const int64_t before = steps;
    const int64_t alive_before = alive;
    const int warp = static_cast<int>(random() % static_cast<uint32_t>(threads / 32));
    // Now and then a warp runs far ahead of the others.
    const int turns = random() % 4 == 0 ? 60 : 1 + static_cast<int>(random() % 4);
    for (int turn = 0; turn < turns; ++turn) {
      const int64_t at = steps;
      for (int i = 32 * warp; i < 32 * warp + 32; ++i) {
        Fiber& fiber = fibers[static_cast<size_t>(i)];
        if (fiber.done) continue;
        resume(fiber);
        if (fiber.done) --alive;
      }
      if (steps == at) break;  // it waits for others
    }
    idle = steps == before && alive == alive_before ? idle + 1 : 0;
    if (idle > 100000) fail("deadlock");
  }
  self = nullptr;
}

const Shown* show(const Shown& mine) {
  Warp& warp = warps[static_cast<size_t>(self->thread / 32)];
  // Two sets in turns: nobody is more than one barrier ahead.
  Shown* values = warp.values[self->shows++ & 1];
  values[self->thread % 32] = mine;
  ++steps;
  const uint64_t phase = warp.phase;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.phase;
  }
  while (warp.phase == phase) yield();
  return values;
}

void barrier(int id, int threads) {
  show({});  // a warp arrives as one
  Barrier& b = barriers[id];
  if (b.arrived == 0) b.threads = threads;
  if (b.threads != threads) fail("a barrier of two sizes");
  ++steps;
  const uint64_t phase = b.phase;
  if (++b.arrived == threads) {
    b.arrived = 0;
    ++b.phase;
  }
  while (b.phase == phase) yield();
}

void pause() {
  yield();
}

unsigned char* shared(uint32_t address, int bytes) {
  if (address + static_cast<size_t>(bytes) > shared_bytes) fail("an address outside shared memory");
  return shared_memory + address;
}
uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - shared_memory);
}

void copy_async(uint32_t to, const void* from, bool valid) {
  if (to % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0)) fail("a misaligned copy");
  std::memset(shared(to, 16), 0xff, 16);  // neither what was there nor what comes
  self->open.push_back({to, from, valid});
}
void commit_copies() {
  self->groups.push_back(std::move(self->open));
  self->open.clear();
}
void wait_copies(size_t pending) {
  while (self->groups.size() > pending) {
    for (const Copy& copy : self->groups.front()) {
      if (copy.valid) {
        std::memcpy(shared(copy.to, 16), copy.from, 16);
      } else {
        std::memset(shared(copy.to, 16), 0, 16);
      }
    }
    self->groups.erase(self->groups.begin());
  }
}

}  // namespace emulator
