// WorkerPool: a few threads that parse, tokenise and render, so that none of it stops the io thread.
// A bounded queue, first in first out; idle workers sleep.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera::server {

class WorkerPool {
 public:
  WorkerPool(int threads, size_t max_waiting);
  ~WorkerPool();  // drops what waits, joins what runs

  // False when max_waiting jobs wait already. Jobs must not throw.
  bool post(std::function<void()> job);
  size_t waiting() const;

 private:
  void work();

  const size_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace tessera::server
