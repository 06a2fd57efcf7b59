#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>

#include "core/check.h"

namespace tessera {
namespace {

std::vector<int> allowed_cpu_list() {
  std::vector<int> cpus;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
    }
  }
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

void pin_thread(pthread_t thread, int cpu) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  // A refusal (a mask narrowed since) leaves the thread unpinned, which costs speed only.
  (void)pthread_setaffinity_np(thread, sizeof mask, &mask);
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until ready() or until the time is over; true when ready.
template <typename Ready>
bool spin_until(Ready&& ready, int microseconds) {
  using clock = std::chrono::steady_clock;
  const auto deadline = clock::now() + std::chrono::microseconds(microseconds);
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
    if (clock::now() >= deadline) return false;
  }
}

}  // namespace

int ThreadPool::allowed_cpus() {
  return static_cast<int>(allowed_cpu_list().size());
}

ThreadPool::ThreadPool(ThreadPoolOptions options) : spin_us_(options.spin_us), pin_(options.pin) {
  cpus_ = allowed_cpu_list();
  size_ = options.threads > 0 ? options.threads : static_cast<int>(cpus_.size());
  slices_ = std::make_unique<Slice[]>(static_cast<size_t>(size_));
  turns_ = std::make_unique<Turn[]>(static_cast<size_t>(size_));
  errors_.resize(static_cast<size_t>(size_));
  // More workers than CPUs only fight for them: do not spin, do not pin.
  if (size_ > static_cast<int>(cpus_.size())) {
    spin_us_ = 0;
    pin_ = false;
  }
  threads_.reserve(static_cast<size_t>(size_ - 1));
  for (int worker = 1; worker < size_; ++worker) {
    threads_.emplace_back([this, worker] { worker_loop(worker); });
    if (pin_) pin_thread(threads_.back().native_handle(), cpus_[static_cast<size_t>(worker)]);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::start_slices(int64_t count) {
  for (int worker = 0; worker < size_; ++worker) {
    slices_[worker].next.store(count * worker / size_, std::memory_order_relaxed);
    slices_[worker].end = count * (worker + 1) / size_;
  }
}

void ThreadPool::run_erased(Job job, void* argument, bool all) {
  TESSERA_CHECK_MSG(!busy_.exchange(true, std::memory_order_acquire), "ThreadPool::run is not reentrant");
  job_ = job;
  argument_ = argument;
  // seq_cst here and in worker_loop: either the worker sees the new epoch, or we see the sleeper.
  const uint32_t epoch = epoch_.fetch_add(1) + 1;
  if (sleepers_.load() > 0) epoch_.notify_all();

  std::exception_ptr error;
  try {
    job(argument, 0);
  } catch (...) {
    error = std::current_exception();
  }
  for (int worker = 1; worker < size_; ++worker) {
    std::atomic<uint32_t>& done = turns_[worker].done;
    // Whoever claims the epoch decides: a worker that wakes too late finds it taken and looks for the next.
    uint32_t before = epoch - 1;
    if (!all && turns_[worker].claimed.compare_exchange_strong(before, epoch)) continue;
    const auto finished = [&] { return done.load(std::memory_order_acquire) == epoch; };
    // A worker that lost its core may take a whole time slice: let it have ours.
    while (!spin_until(finished, 20)) std::this_thread::yield();
    if (errors_[static_cast<size_t>(worker)]) {
      if (!error) error = errors_[static_cast<size_t>(worker)];
      errors_[static_cast<size_t>(worker)] = nullptr;
    }
  }
  busy_.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

void ThreadPool::worker_loop(int worker) {
  uint32_t seen = 0;
  for (;;) {
    const auto changed = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(changed, spin_us_)) {
      sleepers_.fetch_add(1);
      while (epoch_.load() == seen) epoch_.wait(seen);
      sleepers_.fetch_sub(1);
    }
    seen = epoch_.load();
    if (stop_.load()) return;
    // Not the one before: this worker was left out of the epoch, and what that called may be gone.
    uint32_t before = seen - 1;
    if (!turns_[worker].claimed.compare_exchange_strong(before, seen)) continue;
    try {
      job_(argument_, worker);
    } catch (...) {
      errors_[static_cast<size_t>(worker)] = std::current_exception();
    }
    turns_[worker].done.store(seen, std::memory_order_release);
  }
}

}  // namespace tessera
