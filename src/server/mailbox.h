// Mailbox: how other threads hand work to the io thread, one wake-up for however much is waiting.
//
// Invariants:
//  1. Tasks run on the io thread in the order of post().
//  2. At most one wake-up is outstanding; a step of the engine that speaks to 200 streams costs one.
//  3. After close() tasks are dropped, so a sink that outlives the server is harmless.
#pragma once

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace tessera::server {

class Mailbox {
 public:
  // `wake` arranges that the io thread calls deliver(); it must not block.
  explicit Mailbox(std::function<void()> wake) : wake_(std::move(wake)) {}

  void post(std::function<void()> task) {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    tasks_.push_back(std::move(task));
    if (std::exchange(awake_, true)) return;
    wake_();
  }

  // On the io thread.
  void deliver() {
    std::vector<std::function<void()>> tasks;
    {
      const std::lock_guard lock(mutex_);
      tasks.swap(tasks_);
      awake_ = false;
    }
    for (auto& task : tasks) task();
  }

  void close() {
    std::vector<std::function<void()>> dropped;  // destroyed after the lock is let go
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      dropped.swap(tasks_);
    }
  }

 private:
  std::mutex mutex_;
  std::function<void()> wake_;
  std::vector<std::function<void()>> tasks_;
  bool awake_ = false;
  bool closed_ = false;
};

}  // namespace tessera::server
