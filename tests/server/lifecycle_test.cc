// Requests that do not go their ordinary way: clients that leave or dawdle, full queues, draining.
#include <fcntl.h>
#include <sys/resource.h>

#include <atomic>
#include <ctime>
#include <mutex>

#include "tests/server/client.h"

namespace tessera::server {
namespace {

using LifecycleTest = ServerTest;
using Records = FakeService;

std::string streaming(const std::string& prompt, int max_tokens) {
  return format(R"({{"prompt":"{}","max_tokens":{},"stream":true}})", prompt, max_tokens);
}
std::string text_in(const std::string& body) {
  std::string text;
  for (const json::value& event : events_of(body)) {
    if (event.is_object() && event.as_object().contains("choices")) {
      text += str(event.at("choices").at(0).at("text"));
    }
  }
  return text;
}
bool idle(const Records& service) {
  return service.running() == 0;
}
bool busy(const Records& service) {
  return service.running() > 0;
}

// ---- clients that leave

enum class Leave { close, reset, half_close };

class HangUpTest : public ServerTest, public ::testing::WithParamInterface<Leave> {
 protected:
  static void leave(Client& client) {
    switch (GetParam()) {
      case Leave::close:
        client.hang_up();
        break;
      case Leave::reset:
        client.reset();
        break;
      case Leave::half_close:
        client.half_close();
        break;
    }
  }
};

TEST_P(HangUpTest, InTheMiddleOfAStreamCancels) {
  start();
  service_->hold_after(3);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", streaming("x", 100)));
  ASSERT_TRUE(client.receive_until("data: "));
  leave(client);
  EXPECT_TRUE(service_->wait_until(idle));
  EXPECT_EQ(service_->cancelled().size(), 1u);
}

TEST_P(HangUpTest, WhileWaitingForAWholeAnswerCancelsEveryPrompt) {
  start();
  service_->hold_after(3);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", R"({"prompt":["a","b","c"],"n":2})"));
  ASSERT_TRUE(service_->wait_until([](auto& service) { return service.running() == 3; }));
  leave(client);
  EXPECT_TRUE(service_->wait_until(idle));
  EXPECT_EQ(service_->cancelled().size(), 3u);
}

TEST_P(HangUpTest, WhileThePromptIsTokenisedLeavesNothingBehind) {
  start();
  service_->hold_after(3);
  service_->hold_text(true);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", R"({"prompt":"@slow"})"));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  leave(client);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  service_->hold_text(false);
  EXPECT_EQ(post("/tokenize", R"({"prompt":"after"})").status, 200);
  EXPECT_TRUE(service_->wait_until(idle));
}

INSTANTIATE_TEST_SUITE_P(Ways, HangUpTest, ::testing::Values(Leave::close, Leave::reset, Leave::half_close));

TEST_F(LifecycleTest, LeavingAtAnyMomentLeavesNothingBehind) {
  start({}, {.step_us = 200});
  const std::string bytes = Client::text_of("POST", "/v1/completions", streaming("moment", 20));
  for (int round = 0; round < 150; ++round) {
    Client client(port());
    client.send(bytes);
    std::this_thread::sleep_for(std::chrono::microseconds(round * 40));
    if (round % 2 == 0) {
      client.reset();
    } else {
      client.hang_up();
    }
  }
  EXPECT_TRUE(service_->wait_until(idle));
  EXPECT_NE(get("/metrics").body.find("tessera:http_generations 0\n"), std::string::npos);
  Client survivor(port());
  EXPECT_EQ(text_in(survivor.request("POST", "/v1/completions", streaming("moment", 20)).body),
            FakeService::expected(FakeService::prompt_of("moment"), 0, 20));
}

// ---- clients that dawdle

TEST_F(LifecycleTest, AReaderThatStopsIsCutAndItsRequestCancelled) {
  start({.limits = {.stream_buffer_bytes = 4096, .socket_buffer_bytes = 4096, .write_stall_ms = 200}},
        {.max_model_len = 1 << 20, .step_us = 100});
  Client client(port(), 2048);
  client.send(Client::text_of("POST", "/v1/completions", streaming("x", 1'000'000)));
  ASSERT_TRUE(service_->wait_until(busy));
  EXPECT_TRUE(service_->wait_until(idle));
  EXPECT_EQ(service_->cancelled().size(), 1u);
  EXPECT_TRUE(service_->wait_until(
      [&](auto&) { return get("/metrics").body.find("tessera:http_generations 0\n") != std::string::npos; }));
}

TEST_F(LifecycleTest, AStreamThatRunsFarAheadOfItsReaderIsCut) {
  start({.limits = {.stream_buffer_bytes = 4096, .socket_buffer_bytes = 4096}}, {.max_model_len = 1 << 20});
  Client client(port(), 2048);
  client.send(Client::text_of("POST", "/v1/completions", streaming("x", 1'000'000)));
  ASSERT_TRUE(service_->wait_until(busy));
  EXPECT_TRUE(service_->wait_until(idle));
  EXPECT_EQ(service_->cancelled().size(), 1u);
}

TEST_F(LifecycleTest, ASlowReaderLosesNothing) {
  start({.limits = {.stream_buffer_bytes = 4096, .socket_buffer_bytes = 4096}});
  Client client(port(), 2048);
  client.send(Client::text_of("POST", "/v1/completions", streaming("slow", 3000)));
  ASSERT_TRUE(service_->wait_until([](auto& s) { return s.submitted().size() == 1 && s.running() == 0; }));
  const Reply reply = client.read();
  EXPECT_EQ(text_in(reply.body), FakeService::expected(FakeService::prompt_of("slow"), 0, 3000));
}

TEST_F(LifecycleTest, ASilentStreamIsKeptAliveByComments) {
  start({.limits = {.sse_ping_ms = 30}});
  service_->hold_after(0);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", streaming("x", 3)));
  ASSERT_TRUE(client.receive_until(": keep-alive\n\n"));
  service_->release();
  const Reply reply = client.read();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(text_in(reply.body), FakeService::expected(FakeService::prompt_of("x"), 0, 3));
}

TEST_F(LifecycleTest, AWholeAnswerGetsNoComments) {
  start({.limits = {.sse_ping_ms = 10}});
  service_->hold_after(0);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", R"({"prompt":"x","max_tokens":2})"));
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  service_->release();
  EXPECT_EQ(client.read().json().at("usage").at("completion_tokens"), 2);
}

TEST_F(LifecycleTest, OneStuckPromptDoesNotBlockOthers) {
  start({.workers = 2});
  service_->hold_text(true);
  Client stuck(port());
  stuck.send(Client::text_of("POST", "/v1/completions", R"({"prompt":"@slow","max_tokens":1})"));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(post("/v1/completions", R"({"prompt":"x","max_tokens":1})").status, 200);
  service_->hold_text(false);
  EXPECT_EQ(stuck.read().status, 200);
}

// ---- full queues

TEST_F(LifecycleTest, AFullEngineIs429WithRetryAfter) {
  start();
  service_->set_full(true);
  for (const char* stream : {"true", "false"}) {
    const Reply reply = post("/v1/completions", format(R"({{"prompt":"x","stream":{}}})", stream));
    EXPECT_EQ(reply.status, 429);
    EXPECT_EQ(reply.headers.at("retry-after"), "1");
    EXPECT_EQ(reply.error("type"), "rate_limit_error");
    EXPECT_EQ(reply.error("code"), "queue_full");
  }
}

TEST_F(LifecycleTest, TooManyUntokenisedRequestsAre429) {
  start({.limits = {.waiting_jobs = 2}, .workers = 1});
  service_->hold_text(true);
  std::vector<std::unique_ptr<Client>> clients;
  const auto send = [&](const char* target) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send(Client::text_of("POST", target, R"({"prompt":"@slow"})"));
  };
  send("/v1/completions");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the worker has it
  send("/v1/completions");
  send("/tokenize");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(post("/tokenize", R"({"prompt":"x"})").status, 429);
  const Reply refused = post("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  service_->hold_text(false);
  for (auto& client : clients) EXPECT_EQ(client->read().status, 200);
}

TEST_F(LifecycleTest, ABurstIsEitherServedOrRefused) {
  start({}, {.step_us = 500, .max_queued = 8});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send(Client::text_of("POST", "/v1/completions", R"({"prompt":"burst","max_tokens":20})"));
  }
  int served = 0, refused = 0;
  for (auto& client : clients) {
    const Reply reply = client->read();
    served += reply.status == 200 ? 1 : 0;
    refused += reply.status == 429 ? 1 : 0;
  }
  EXPECT_EQ(served + refused, 100);
  EXPECT_GE(served, 8);
}

// Gives descriptors below `limit` only, while it lives.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(int limit) {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit lower{static_cast<rlim_t>(limit), before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &lower), 0);
  }
  ~DescriptorLimit() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(LifecycleTest, OutOfDescriptorsTheOpenConnectionsGoOnAndTheOthersWait) {
  std::mutex mutex;
  std::vector<std::string> lines;
  ServerOptions options;
  options.log = [&](LogLevel, std::string_view line) {
    const std::lock_guard lock(mutex);
    lines.emplace_back(line);
  };
  start(options);
  Client early(port());
  ASSERT_EQ(early.request("GET", "/health").status, 200);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 6; ++i) clients.push_back(std::make_unique<Client>());
  const int free = ::open("/dev/null", O_RDONLY);
  close(free);
  const DescriptorLimit limit(free + 2);  // so two of the six can be accepted at most
  for (auto& client : clients) {
    client->connect(port());
    ASSERT_TRUE(client->connected());
    client->send(Client::text_of("GET", "/health", ""));
  }
  ASSERT_TRUE(service_->wait_until([&](auto&) {
    const std::lock_guard lock(mutex);
    return !lines.empty();
  }));
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(early.request("POST", "/v1/completions", R"({"prompt":"x","max_tokens":2})").status, 200);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // a further attempt to accept
  }
  // Each that leaves makes room for two.
  int answered = 0;
  for (auto& client : clients) {
    answered += client->read().status == 200 ? 1 : 0;
    client.reset();
  }
  EXPECT_EQ(answered, 6);
  stop();
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("cannot accept connections"), std::string::npos) << lines[0];
}

// ---- many at once

TEST_F(LifecycleTest, TwoHundredStreamsEachGetTheirOwnTokens) {
  start();
  service_->hold_after(0);
  constexpr int kStreams = 200, kTokens = 30;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    ASSERT_TRUE(clients.back()->connected());
    clients.back()->send(
        Client::text_of("POST", "/v1/completions", streaming(format("canary {}", i), kTokens)));
  }
  ASSERT_TRUE(service_->wait_until([](auto& service) { return service.running() == kStreams; }));
  service_->release();
  for (int i = 0; i < kStreams; ++i) {
    const Reply reply = clients[i]->read();
    ASSERT_EQ(reply.status, 200);
    ASSERT_EQ(text_in(reply.body),
              FakeService::expected(FakeService::prompt_of(format("canary {}", i)), 0, kTokens));
  }
}

TEST_F(LifecycleTest, AnIdleServerUsesNoCpu) {
  start();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    ASSERT_EQ(clients.back()->request("GET", "/health").status, 200);
  }
  timespec before{}, after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double used =
      static_cast<double>(after.tv_sec - before.tv_sec) + 1e-9 * (after.tv_nsec - before.tv_nsec);
  EXPECT_LT(used, 0.005);  // 1 % of the time
}

// ---- ends

TEST_F(LifecycleTest, DrainingFinishesWhatRunsAndRefusesTheRest) {
  start();
  service_->hold_after(2);
  Client running(port());
  running.send(Client::text_of("POST", "/v1/completions", streaming("drain", 10)));
  ASSERT_TRUE(running.receive_until("data: "));
  Client idle_connection(port());
  ASSERT_EQ(idle_connection.request("GET", "/health").status, 200);
  server_->drain();
  const auto draining = [&](auto&) { return get("/health").status == 503; };
  ASSERT_TRUE(service_->wait_until(draining));
  EXPECT_EQ(get("/health").headers.at("retry-after"), "1");
  const Reply refused = idle_connection.request("POST", "/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.error("code"), "shutting_down");
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  EXPECT_EQ(refused.headers.at("connection"), "close");
  EXPECT_EQ(get("/metrics").status, 200);
  service_->release();
  const Reply reply = running.read();
  EXPECT_EQ(text_in(reply.body), FakeService::expected(FakeService::prompt_of("drain"), 0, 10));
  join();
  EXPECT_FALSE(Client(port()).connected());
}

TEST_F(LifecycleTest, DrainingAnIdleServerEndsAtOnce) {
  start();
  Client client(port());
  ASSERT_EQ(client.request("GET", "/health").status, 200);
  server_->drain();
  server_->drain();
  join();
  EXPECT_TRUE(client.wait_for_end());
}

TEST_F(LifecycleTest, TheDrainDeadlineCancelsAndTellsTheClients) {
  start({.drain_ms = 100});
  service_->hold_after(2);
  Client stream(port()), whole(port());
  stream.send(Client::text_of("POST", "/v1/completions", streaming("x", 10)));
  whole.send(Client::text_of("POST", "/v1/completions", R"({"prompt":"y"})"));
  ASSERT_TRUE(stream.receive_until("data: "));
  ASSERT_TRUE(service_->wait_until([](auto& service) { return service.running() == 2; }));
  server_->drain();
  const Reply cut = stream.read();
  EXPECT_EQ(cut.status, 200);
  EXPECT_NE(cut.body.find("shutting_down"), std::string::npos);
  EXPECT_TRUE(cut.body.ends_with("data: [DONE]\n\n"));
  EXPECT_EQ(whole.read().status, 503);
  join();
  EXPECT_TRUE(service_->wait_until(idle));
}

TEST_F(LifecycleTest, StoppingCancelsEverythingNow) {
  start();
  service_->hold_after(2);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send(Client::text_of("POST", "/v1/completions", streaming("x", 10)));
  }
  ASSERT_TRUE(service_->wait_until([](auto& service) { return service.running() == 20; }));
  server_->stop();
  join();
  EXPECT_TRUE(service_->wait_until(idle));
  for (auto& client : clients) EXPECT_TRUE(client->wait_for_end());
}

TEST_F(LifecycleTest, TheEngineMayOutliveTheServer) {
  start();
  service_->hold_after(1);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", streaming("x", 10)));
  ASSERT_TRUE(client.receive_until("data: "));
  server_->stop();
  join();
  server_.reset();
  service_->release();  // sinks that are still there fall silent
  EXPECT_TRUE(service_->wait_until(idle));
}

TEST_F(LifecycleTest, AServerThatNeverRanCanBeDestroyed) {
  FakeService service;
  auto server = Server::create({.port = 0}, service);
  ASSERT_TRUE(server.ok());
  Client client((*server)->port());
  (*server)->drain();
  (*server)->stop();
}

}  // namespace
}  // namespace tessera::server
