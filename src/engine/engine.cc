#include "engine/engine.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_set>

#include "core/format.h"
#include "engine/engine_core.h"

namespace tessera::engine {
namespace {

class ThreadedEngine final : public Engine {
 public:
  ThreadedEngine(EngineOptions options, Runner* runner)
      : options_(std::move(options)), core_(options_, runner), free_slots_(options_.max_num_seqs) {}

  Status start() {
    TESSERA_RETURN_IF_ERROR(core_.prepare());
    core_.fill(&metrics_);
    thread_ = std::thread([this] { run(); });
    return {};
  }

  ~ThreadedEngine() override {
    if (!thread_.joinable()) return;
    {
      std::lock_guard lock(mutex_);
      draining_ = stopping_ = cancel_all_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  Status submit(Request request, OutputSink sink) override {
    Status status = EngineCore::check_request(options_, request);
    std::lock_guard lock(mutex_);
    if (status.ok()) status = admit(request);
    if (!status.ok()) {
      ++rejected_;
      return status;
    }
    ids_.insert(request.id);
    ++open_;
    inbox_.push_back({std::move(request), std::move(sink), options_.clock->now_ns()});
    wake_.notify_all();
    return {};
  }

  void cancel(const std::string& id) override {
    std::lock_guard lock(mutex_);
    if (ids_.count(id) == 0) return;
    cancels_.push_back(id);
    wake_.notify_all();
  }

  MetricsSnapshot metrics() const override {
    std::lock_guard lock(mutex_);
    MetricsSnapshot snapshot = metrics_;
    snapshot.rejected = rejected_;
    snapshot.requests_waiting += static_cast<int>(inbox_.size());
    return snapshot;
  }

  void drain(int deadline_ms) override {
    std::unique_lock lock(mutex_);
    draining_ = true;
    const auto done = [this] { return open_ == 0; };
    if (drained_.wait_for(lock, std::chrono::milliseconds(deadline_ms), done)) return;
    cancel_all_ = true;
    wake_.notify_all();
    drained_.wait(lock, done);
  }

 private:
  struct Arrival {
    Request request;
    OutputSink sink;
    int64_t submitted_ns;
  };

  // Under the mutex: what depends on the others that are here.
  Status admit(const Request& request) const {
    if (draining_) return Status(StatusCode::unavailable, "the server is shutting down; try another one");
    if (ids_.count(request.id) != 0) {
      return invalid_argument(format("id: a request with the id {} is running; use another", request.id),
                              "id");
    }
    const size_t places = static_cast<size_t>(options_.max_queued_requests + free_slots_);
    const size_t queued = static_cast<size_t>(queued_) + inbox_.size();
    if (queued < places) return {};
    return resource_exhausted(format("{} requests wait already, and the limit is {}; try again later", queued,
                                     options_.max_queued_requests));
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] {
        return !inbox_.empty() || !cancels_.empty() || cancel_all_ || stopping_ || !core_.idle();
      });
      std::vector<Arrival> arrivals = std::exchange(inbox_, {});
      const std::vector<std::string> cancels = std::exchange(cancels_, {});
      const bool cancel_all = std::exchange(cancel_all_, false);
      // What has left the inbox still counts as queued until the turn is over.
      queued_ += static_cast<int>(arrivals.size());
      lock.unlock();

      for (Arrival& arrival : arrivals) {
        core_.start(std::move(arrival.request), std::move(arrival.sink), arrival.submitted_ns);
      }
      for (const std::string& id : cancels) core_.cancel(id);
      if (cancel_all) core_.cancel_all();
      core_.turn();
      deliver();

      lock.lock();
      if (stopping_ && core_.idle() && inbox_.empty()) return;
    }
  }

  // The sinks run without the mutex, so they may call submit() and cancel(). The metrics are there before
  // them.
  void deliver() {
    std::vector<Delivery> deliveries = core_.take_deliveries();
    {
      std::lock_guard lock(mutex_);
      core_.fill(&metrics_);
      queued_ = core_.queued();
      free_slots_ = std::max(0, options_.max_num_seqs - core_.running_sequences());
      for (const Delivery& delivery : deliveries) {
        if (delivery.last) ids_.erase(delivery.id);
      }
    }
    for (Delivery& delivery : deliveries) {
      if (delivery.sink) delivery.sink(std::move(delivery.outputs));
      if (!delivery.last) continue;
      std::lock_guard lock(mutex_);
      if (--open_ == 0) drained_.notify_all();
    }
  }

  const EngineOptions options_;
  EngineCore core_;  // the engine's thread alone, once it runs

  mutable std::mutex mutex_;
  std::condition_variable wake_, drained_;
  std::vector<Arrival> inbox_;
  std::vector<std::string> cancels_;
  std::unordered_set<std::string> ids_;  // of requests that have been accepted and have not ended
  int64_t open_ = 0;                     // requests whose sink has not heard `last`
  bool draining_ = false, stopping_ = false, cancel_all_ = false;
  int queued_ = 0;
  int free_slots_ = 0;  // of the running batch
  uint64_t rejected_ = 0;
  MetricsSnapshot metrics_;
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(EngineOptions options, Runner* runner) {
  TESSERA_RETURN_IF_ERROR(EngineCore::check_options(options));
  auto engine = std::make_unique<ThreadedEngine>(std::move(options), runner);
  TESSERA_RETURN_IF_ERROR(engine->start());
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace tessera::engine
