// The engine with its thread: many clients, ends, refusals, sleep.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <thread>

#include "tests/engine/harness.h"

namespace tessera::engine::testing {
namespace {

EngineOptions threaded_options(int blocks) {
  EngineOptions options = Harness::options(blocks, 16);
  options.make_decoder = [] { return std::make_unique<NumberDecoder>(); };
  return options;
}

// One client's view.
struct Client {
  std::mutex mutex;
  std::condition_variable ended;
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::none;
  int last = 0;

  OutputSink sink() {
    return [this](std::vector<Output>&& outputs) {
      std::lock_guard lock(mutex);
      for (const Output& output : outputs) {
        tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
        if (output.finish != FinishReason::none) finish = output.finish;
        last += output.last;
      }
      ended.notify_all();
    };
  }
  void wait_end() {
    std::unique_lock lock(mutex);
    ended.wait(lock, [this] { return last > 0; });
  }
  void wait_token() {
    std::unique_lock lock(mutex);
    ended.wait(lock, [this] { return !tokens.empty() || last > 0; });
  }
};

Request request(const std::string& id, int prompt, uint64_t salt, int max_tokens) {
  Request result{.id = id, .prompt = make_prompt(prompt, salt)};
  result.sampling.max_tokens = max_tokens;
  result.sampling.seed = salt;
  return result;
}

// Holds the engine's thread inside submit() until it is let go.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool open = false;
  std::atomic<int> arrived{0};
  void pass() {
    std::unique_lock lock(mutex);
    ++arrived;
    changed.notify_all();
    changed.wait(lock, [this] { return open; });
  }
  void wait_arrival() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return arrived > 0; });
  }
  void let_go() {
    std::lock_guard lock(mutex);
    open = true;
    changed.notify_all();
  }
};

TEST(Engine, ManyClientsFromManyThreadsGetTheirOwnTokens) {
  for (const int lag : {0, 1}) {
    EngineOptions options = threaded_options(64);
    options.lag = lag;
    FakeRunner runner(64, 16);
    auto engine = Engine::create(options, &runner);
    ASSERT_TRUE(engine.ok());
    std::atomic<int> wrong{0};
    const auto client_thread = [&](int thread) {
      for (int i = 0; i < 20; ++i) {
        Client client;
        const auto salt = static_cast<uint64_t>(i % 5);
        const std::string id = format("{}/{}", thread, i);
        Request asked = request(id, 30 + i, salt, 10 + thread);
        const auto prompt = asked.prompt;
        if (!(*engine)->submit(std::move(asked), client.sink()).ok()) ++wrong;
        const bool cancel = i % 4 == 3;
        if (cancel) {
          client.wait_token();
          (*engine)->cancel(id);
        }
        client.wait_end();
        const auto expected = runner.model().expected_tokens(prompt, salt, 0, 10 + thread);
        wrong += client.last != 1;
        wrong += !cancel && client.tokens != expected;
        wrong += !std::equal(client.tokens.begin(), client.tokens.end(), expected.begin());
      }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) threads.emplace_back(client_thread, i);
    for (int i = 0; i < 50; ++i) EXPECT_EQ((*engine)->metrics().kv_blocks_total, 64);
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
    (*engine)->drain(1000);
    const MetricsSnapshot metrics = (*engine)->metrics();
    EXPECT_EQ(metrics.kv_blocks_referenced, 0);
    EXPECT_EQ(metrics.finished_length + metrics.finished_abort, 120u);
    EXPECT_EQ(metrics.requests_running + metrics.requests_waiting, 0);
    for (const std::string& error : runner.errors) ADD_FAILURE() << error;
  }
}

TEST(Engine, AFullQueueRefusesAndTheRefusedAreCounted) {
  EngineOptions options = threaded_options(512);
  options.max_num_seqs = 2;
  options.max_queued_requests = 5;
  FakeRunner runner(512, 16);
  Gate gate;
  runner.on_submit = [&](const StepPlan&) { gate.pass(); };
  auto engine = Engine::create(options, &runner);
  ASSERT_TRUE(engine.ok());
  std::vector<std::unique_ptr<Client>> clients;
  int accepted = 0, refused = 0;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(std::make_unique<Client>());
    const Status status = (*engine)->submit(request(std::to_string(i), 20, i, 5), clients.back()->sink());
    if (i == 0) gate.wait_arrival();  // the engine is busy with the first
    status.ok() ? ++accepted : ++refused;
    if (!status.ok()) {
      EXPECT_EQ(status.code(), StatusCode::resource_exhausted);
    }
    if (!status.ok()) clients.pop_back();
  }
  EXPECT_EQ(accepted, 5 + 2);  // the queue, and the places of the batch
  EXPECT_EQ((*engine)->metrics().rejected, static_cast<uint64_t>(refused));
  EXPECT_GE((*engine)->metrics().requests_waiting, 5);
  gate.let_go();
  for (auto& client : clients) client->wait_end();
  (*engine)->drain(1000);
}

TEST(Engine, ARunningIdCannotBeUsedTwiceAndBadRequestsAreNamed) {
  FakeRunner runner(64, 16);
  Gate gate;
  runner.on_submit = [&](const StepPlan&) { gate.pass(); };
  auto engine = Engine::create(threaded_options(64), &runner);
  ASSERT_TRUE(engine.ok());
  Client client, other;
  ASSERT_TRUE((*engine)->submit(request("a", 20, 1, 5), client.sink()).ok());
  EXPECT_EQ((*engine)->submit(request("a", 20, 1, 5), other.sink()).field(), "id");
  Request bad = request("b", 20, 1, 5);
  bad.sampling.top_p = std::nanf("");
  EXPECT_EQ((*engine)->submit(std::move(bad), other.sink()).field(), "top_p");
  gate.let_go();
  client.wait_end();
  EXPECT_EQ(other.last, 0);
  Client again;
  EXPECT_TRUE((*engine)->submit(request("a", 20, 1, 5), again.sink()).ok());
  again.wait_end();
  EXPECT_EQ(again.tokens, client.tokens);
}

TEST(Engine, DrainLetsTheRunningFinishAndRefusesTheRest) {
  FakeRunner runner(64, 16);
  auto engine = Engine::create(threaded_options(64), &runner);
  ASSERT_TRUE(engine.ok());
  Client client, late;
  ASSERT_TRUE((*engine)->submit(request("a", 20, 1, 200), client.sink()).ok());
  (*engine)->drain(60'000);
  EXPECT_EQ(client.last, 1);
  EXPECT_EQ(client.finish, FinishReason::length);
  EXPECT_EQ((*engine)->submit(request("b", 20, 1, 5), late.sink()).code(), StatusCode::unavailable);
}

TEST(Engine, DrainCancelsWhatTheDeadlineOvertakes) {
  FakeRunner runner(512, 16);
  runner.on_submit = [](const StepPlan&) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
  auto engine = Engine::create(threaded_options(512), &runner);
  ASSERT_TRUE(engine.ok());
  Client client;
  ASSERT_TRUE((*engine)->submit(request("a", 20, 1, 8000), client.sink()).ok());
  client.wait_token();
  (*engine)->drain(10);
  EXPECT_EQ(client.last, 1);
  EXPECT_EQ(client.finish, FinishReason::cancelled);
  EXPECT_EQ((*engine)->metrics().kv_blocks_referenced, 0);
}

TEST(Engine, TheDestructorTellsEveryClient) {
  FakeRunner runner(512, 16);
  Client client;
  {
    auto engine = Engine::create(threaded_options(512), &runner);
    ASSERT_TRUE(engine.ok());
    ASSERT_TRUE((*engine)->submit(request("a", 20, 1, 8000), client.sink()).ok());
  }
  EXPECT_EQ(client.last, 1);
  EXPECT_EQ(client.finish, FinishReason::cancelled);
}

TEST(Engine, ASinkMaySubmitAndCancel) {
  FakeRunner runner(512, 16);
  auto engine = Engine::create(threaded_options(512), &runner);
  ASSERT_TRUE(engine.ok());
  Client second;
  std::atomic<int> first_outputs{0};
  const auto sink = [&](std::vector<Output>&& outputs) {
    if (first_outputs++ == 0) {
      (*engine)->cancel("a");
      EXPECT_TRUE((*engine)->submit(request("b", 20, 2, 5), second.sink()).ok());
    }
    for (const Output& output : outputs) {
      if (output.last) {
        EXPECT_EQ(output.finish, FinishReason::cancelled);
      }
    }
  };
  ASSERT_TRUE((*engine)->submit(request("a", 20, 1, 8000), sink).ok());
  second.wait_end();
  EXPECT_EQ(second.tokens.size(), 5u);
  (*engine)->drain(1000);
}

TEST(Engine, AnIdleEngineSleeps) {
  FakeRunner runner(64, 16);
  auto engine = Engine::create(threaded_options(64), &runner);
  ASSERT_TRUE(engine.ok());
  Client client;
  ASSERT_TRUE((*engine)->submit(request("a", 20, 1, 50), client.sink()).ok());
  client.wait_end();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::clock_t begin = std::clock();  // of the whole process
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 0.01);
}

}  // namespace
}  // namespace tessera::engine::testing
