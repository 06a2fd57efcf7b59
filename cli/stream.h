// Stream: the outputs of one request, handed from the engine's thread to the caller's.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/service.h"

namespace tessera::cli {

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  // The sink keeps the stream alive until the last output.
  static std::shared_ptr<Stream> create() { return std::make_shared<Stream>(); }
  engine::OutputSink sink() {
    return [self = shared_from_this()](std::vector<engine::Output>&& outputs) {
      const std::lock_guard lock(self->mutex_);
      for (engine::Output& output : outputs) self->outputs_.push_back(std::move(output));
      self->changed_.notify_one();
    };
  }
  // What has come so far; waits up to `timeout` for something. Empty on a timeout.
  std::vector<engine::Output> take(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, timeout, [&] { return !outputs_.empty(); });
    return std::exchange(outputs_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<engine::Output> outputs_;
};

}  // namespace tessera::cli
