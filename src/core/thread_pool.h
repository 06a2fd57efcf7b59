// A fork-join pool for steps of a few microseconds.
//
// Persistent workers, the caller is worker 0. A fork-join costs ~0.1 us while the workers still spin and one
// futex wake when they sleep. Waiting is bounded: spin, then yield, then sleep, so an idle pool uses no CPU
// and a stolen core delays nobody for ever.
//
// Invariants:
//  1. At most one run() is in flight; nested or concurrent use is a CHECK.
//  2. run(): every worker runs the job exactly once, and run() returns after all of them have. run_any() and
//     parallel_for(): a worker that has not begun when the caller is through is left out, so that a short job
//     never waits for a thread to wake; they return after all that began have ended.
//  3. parallel_for hands out each index exactly once. Who computes it never changes the bits (law 1): callers
//     divide rows and output columns only.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace tessera {

struct ThreadPoolOptions {
  int threads = 0;   // workers, the caller included; 0: one for each CPU of the allowed mask
  bool pin = false;  // pin workers 1.. to CPUs of the allowed mask (never outside it)
  int spin_us = 50;  // how long a worker spins for the next job before it sleeps
};

class ThreadPool {
 public:
  explicit ThreadPool(ThreadPoolOptions options = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls fn(worker) once for each worker 0..size()-1 and waits. An exception of any worker is rethrown here.
  template <typename F>
  void run(F&& fn) {
    using Fn = std::remove_reference_t<F>;
    run_erased([](void* self, int worker) { (*static_cast<Fn*>(self))(worker); },
               const_cast<void*>(static_cast<const void*>(&fn)), true);
  }

  // Calls fn(0) here and fn(worker) once on each worker that comes before fn(0) has returned. REQUIRES: when
  // fn(0) has returned, what is left to do is in the hands of workers that have begun.
  template <typename F>
  void run_any(F&& fn) {
    using Fn = std::remove_reference_t<F>;
    run_erased([](void* self, int worker) { (*static_cast<Fn*>(self))(worker); },
               const_cast<void*>(static_cast<const void*>(&fn)), false);
  }

  // Calls fn(begin, end, worker) over disjoint pieces that cover [0, count). Worker t owns the t-th part and
  // takes it `grain` at a time; who is done steals from the others. Ownership is the same in every call, so a
  // worker meets the same weights in each step.
  template <typename F>
  void parallel_for(int64_t count, int64_t grain, F&& fn) {
    if (count <= 0) return;
    if (size_ == 1 || count <= grain) {
      fn(int64_t{0}, count, 0);
      return;
    }
    start_slices(count);
    run_any([&](int worker) {
      int64_t begin, end;
      for (int offset = 0; offset < size_; ++offset) {
        const int owner = worker + offset < size_ ? worker + offset : worker + offset - size_;
        while (take_slice(owner, grain, &begin, &end)) fn(begin, end, worker);
      }
    });
  }

  // CPUs this process may run on (its affinity mask).
  static int allowed_cpus();

 private:
  using Job = void (*)(void*, int);
  struct alignas(64) Slice {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  struct alignas(64) Turn {
    std::atomic<uint32_t> claimed{
        0};  // the last epoch that the worker began or was left out of; no epoch is passed over
    std::atomic<uint32_t> done{0};  // the last epoch that it ran
  };

  // all: waits for every worker; else leaves out those that have not begun.
  void run_erased(Job job, void* argument, bool all);
  void worker_loop(int worker);
  void start_slices(int64_t count);
  bool take_slice(int owner, int64_t grain, int64_t* begin, int64_t* end) {
    Slice& slice = slices_[owner];
    // Read first: a finished slice costs no write.
    if (slice.next.load(std::memory_order_relaxed) >= slice.end) return false;
    *begin = slice.next.fetch_add(grain, std::memory_order_relaxed);
    if (*begin >= slice.end) return false;
    *end = *begin + grain < slice.end ? *begin + grain : slice.end;
    return true;
  }

  int size_ = 1;
  int spin_us_ = 50;
  bool pin_ = false;
  std::vector<int> cpus_;
  std::unique_ptr<Slice[]> slices_;  // [size_]
  std::unique_ptr<Turn[]> turns_;    // [size_]
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  Job job_ = nullptr;
  void* argument_ = nullptr;
  std::vector<std::exception_ptr> errors_;  // [size_]
  std::vector<std::thread> threads_;        // [size_ - 1]
};

}  // namespace tessera
