#include "tests/server/client.h"

namespace tessera::server {
namespace {

using CompletionsTest = ServerTest;

std::string completion(const std::string& fields) {
  return "{\"prompt\":\"hello\"" + (fields.empty() ? "" : "," + fields) + "}";
}
const std::vector<int32_t> kHello = FakeService::prompt_of("hello");

std::string text_of(const json::value& body, size_t choice = 0) {
  return str(body.at("choices").at(choice).at("text"));
}

TEST_F(CompletionsTest, AnswersSixteenTokensByDefault) {
  start();
  const Reply reply = post("/v1/completions", completion(""));
  ASSERT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
  const json::value body = reply.json();
  EXPECT_EQ(body.at("object"), "text_completion");
  EXPECT_EQ(body.at("model"), "fake-model");
  EXPECT_TRUE(body.at("id").as_string().starts_with("cmpl-"));
  EXPECT_EQ(text_of(body), FakeService::expected(kHello, 0, 16));
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_TRUE(body.at("choices").at(0).at("logprobs").is_null());
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 6);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 16);
  EXPECT_EQ(body.at("usage").at("total_tokens"), 22);
  EXPECT_EQ(body.at("usage").at("prompt_tokens_details").at("cached_tokens"), 3);
}

TEST_F(CompletionsTest, TokenIdsAreAPrompt) {
  start();
  const json::value body = post("/v1/completions", R"({"prompt":[256,104,105],"max_tokens":3})").json();
  EXPECT_EQ(text_of(body), FakeService::expected({256, 104, 105}, 0, 3));
}

TEST_F(CompletionsTest, EachPromptOfAnArrayHasItsOwnChoices) {
  start();
  const json::value body = post("/v1/completions", R"({"prompt":["a",[98]],"n":2,"max_tokens":3})").json();
  ASSERT_EQ(body.at("choices").as_array().size(), 4u);
  const std::vector<int32_t> a = FakeService::prompt_of("a"), b = {98};
  EXPECT_EQ(text_of(body, 0), FakeService::expected(a, 0, 3));
  EXPECT_EQ(text_of(body, 1), FakeService::expected(a, 1, 3));
  EXPECT_EQ(text_of(body, 2), FakeService::expected(b, 0, 3));
  EXPECT_EQ(text_of(body, 3), FakeService::expected(b, 1, 3));
  EXPECT_EQ(body.at("choices").at(3).at("index"), 3);
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 3);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 12);
}

TEST_F(CompletionsTest, EchoPutsThePromptBeforeTheAnswer) {
  start();
  EXPECT_EQ(text_of(post("/v1/completions", completion(R"("echo":true,"max_tokens":2)")).json()),
            "hello" + FakeService::expected(kHello, 0, 2));
  EXPECT_EQ(text_of(post("/v1/completions", R"({"prompt":[104,105],"echo":true,"max_tokens":2})").json()),
            "hi" + FakeService::expected({104, 105}, 0, 2));
}

TEST_F(CompletionsTest, ReturnsTokenIdsWhenAsked) {
  start();
  const json::value body =
      post("/v1/completions", completion(R"("return_token_ids":true,"max_tokens":2)")).json();
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("token_ids"),
            (json::array{FakeService::token_at(kHello, 0, 0), FakeService::token_at(kHello, 0, 1)}));
  EXPECT_EQ(choice.at("prompt_token_ids"), (json::array{256, 104, 101, 108, 108, 111}));
}

TEST_F(CompletionsTest, LogprobsHaveOpenAisLegacyForm) {
  start();
  const json::value body = post("/v1/completions", completion(R"("logprobs":2,"max_tokens":2)")).json();
  const json::value& logprobs = body.at("choices").at(0).at("logprobs");
  const int32_t first = FakeService::token_at(kHello, 0, 0);
  EXPECT_EQ(str(logprobs.at("tokens").at(0)), FakeService::text_of(first));
  EXPECT_EQ(logprobs.at("token_logprobs"), (json::array{-0.5, -0.5}));
  EXPECT_EQ(logprobs.at("text_offset"), (json::array{0, 5}));
  EXPECT_EQ(logprobs.at("top_logprobs").at(0).as_object().size(), 2u);
  EXPECT_EQ(logprobs.at("top_logprobs").at(0).at(FakeService::text_of(first + 1)), -1.5);
}

TEST_F(CompletionsTest, LogprobsZeroGivesTheChosenTokenAlone) {
  start();
  const json::value body = post("/v1/completions", completion(R"("logprobs":0,"max_tokens":1)")).json();
  const json::value& logprobs = body.at("choices").at(0).at("logprobs");
  const std::string token = FakeService::text_of(FakeService::token_at(kHello, 0, 0));
  EXPECT_EQ(logprobs.at("top_logprobs").at(0), (json::object{{token, -0.5}}));
}

TEST_F(CompletionsTest, EchoWithLogprobsBeginsWithThePromptsWhoseFirstIsNull) {
  start();
  const json::value body =
      post("/v1/completions", completion(R"("echo":true,"logprobs":1,"max_tokens":1)")).json();
  const json::value& logprobs = body.at("choices").at(0).at("logprobs");
  const std::string drawn = FakeService::text_of(FakeService::token_at(kHello, 0, 0));
  EXPECT_EQ(text_of(body), "hello" + drawn);
  EXPECT_EQ(logprobs.at("tokens"), (json::array{"", "h", "e", "l", "l", "o", drawn}));
  EXPECT_EQ(logprobs.at("token_logprobs"), (json::array{nullptr, -1.5, -1.5, -1.5, -1.5, -1.5, -0.5}));
  EXPECT_EQ(logprobs.at("text_offset"), (json::array{0, 0, 1, 2, 3, 4, 5}));
  EXPECT_TRUE(logprobs.at("top_logprobs").at(0).is_null());
  EXPECT_EQ(logprobs.at("top_logprobs").at(1), (json::object{{"h", -1.5}}));
  EXPECT_EQ(logprobs.at("top_logprobs").as_array().size(), 7u);
}

TEST_F(CompletionsTest, EchoOfNoTokensScoresThePromptAlone) {
  start();
  const std::string fields = R"("echo":true,"logprobs":0,"max_tokens":0)";
  const json::value body = post("/v1/completions", completion(fields)).json();
  EXPECT_EQ(text_of(body), "hello");
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("logprobs").at("token_logprobs").as_array().size(), 6u);
  EXPECT_EQ(choice.at("finish_reason"), "length");
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 0);
  const auto events = events_of(post("/v1/completions", completion(fields + R"(,"stream":true)")).body);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(text_of(events[0]), "hello");
  EXPECT_EQ(events[0].at("choices").at(0).at("logprobs"), choice.at("logprobs"));
  EXPECT_EQ(events[1].at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(text_of(post("/v1/completions", completion(R"("echo":true,"max_tokens":0)")).json()), "hello");
}

TEST_F(CompletionsTest, EachChoiceTellsItsSeedWhetherGivenOrDrawn) {
  start();
  for (const bool given : {true, false}) {
    const std::string seed = given ? R"("seed":7,)" : "";
    const uint64_t want = given ? 7 : FakeService::kDrawnSeed;
    const json::value whole = post("/v1/completions", completion(seed + R"("max_tokens":1,"n":2)")).json();
    EXPECT_EQ(whole.at("choices").at(0).at("seed"), want);
    EXPECT_EQ(whole.at("choices").at(1).at("seed"), want);
    const auto events =
        events_of(post("/v1/completions", completion(seed + R"("max_tokens":1,"stream":true)")).body);
    ASSERT_EQ(events.size(), 3u);
    EXPECT_FALSE(events[0].at("choices").at(0).as_object().contains("seed"));
    EXPECT_EQ(events[1].at("choices").at(0).at("seed"), want);
  }
}

TEST_F(CompletionsTest, StreamsChunksThenFinishThenDone) {
  start();
  const Reply reply = post("/v1/completions", completion(R"("stream":true,"max_tokens":3)"));
  ASSERT_EQ(reply.status, 200);
  EXPECT_TRUE(reply.headers.at("content-type").starts_with("text/event-stream"));
  const auto events = events_of(reply.body);
  ASSERT_EQ(events.size(), 5u);
  std::string text;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(events[i].at("object"), "text_completion");
    EXPECT_TRUE(events[i].at("choices").at(0).at("finish_reason").is_null());
    EXPECT_FALSE(events[i].as_object().contains("usage"));
    text += text_of(events[i]);
  }
  EXPECT_EQ(text, FakeService::expected(kHello, 0, 3));
  EXPECT_EQ(text_of(events[3]), "");
  EXPECT_EQ(events[3].at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(events[4], "[DONE]");
}

TEST_F(CompletionsTest, AStreamWithUsageHasItInTheLastChunkOnly) {
  start();
  const auto events =
      events_of(post("/v1/completions",
                     completion(R"("stream":true,"stream_options":{"include_usage":true},"max_tokens":2)"))
                    .body);
  ASSERT_EQ(events.size(), 5u);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(events[i].at("usage").is_null());
  EXPECT_TRUE(events[3].at("choices").as_array().empty());
  EXPECT_EQ(events[3].at("usage").at("completion_tokens"), 2);
  EXPECT_EQ(events[3].at("usage").at("prompt_tokens_details").at("cached_tokens"), 3);
}

TEST_F(CompletionsTest, AStreamCarriesEchoLogprobsAndTokenIds) {
  start();
  const auto events =
      events_of(post("/v1/completions",
                     completion(R"("stream":true,"return_token_ids":true,"logprobs":1,"max_tokens":1)"))
                    .body);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].at("choices").at(0).at("prompt_token_ids").as_array().size(), 6u);
  const json::value& choice = events[1].at("choices").at(0);
  EXPECT_EQ(choice.at("token_ids"), (json::array{FakeService::token_at(kHello, 0, 0)}));
  EXPECT_EQ(choice.at("logprobs").at("token_logprobs"), (json::array{-0.5}));
  const auto echoed =
      events_of(post("/v1/completions", completion(R"("stream":true,"echo":true,"max_tokens":1)")).body);
  EXPECT_EQ(text_of(echoed.at(0)), "hello");
}

TEST_F(CompletionsTest, StopStringsEndTheAnswerAndAreReported) {
  start();
  const std::string second = FakeService::text_of(FakeService::token_at(kHello, 0, 1));
  const json::value body = post("/v1/completions", completion("\"stop\":[\"" + second + "\"]")).json();
  EXPECT_EQ(text_of(body), FakeService::expected(kHello, 0, 1));
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "stop");
  EXPECT_EQ(str(body.at("choices").at(0).at("stop_reason")), second);
  const json::value kept =
      post("/v1/completions", completion("\"stop\":\"" + second + "\",\"include_stop_str_in_output\":true"))
          .json();
  EXPECT_EQ(text_of(kept), FakeService::expected(kHello, 0, 2));
}

TEST_F(CompletionsTest, AStopTokenIsReportedAsANumber) {
  start();
  const int32_t second = FakeService::token_at(kHello, 0, 1);
  const json::value body =
      post("/v1/completions", completion(format("\"stop_token_ids\":[{}]", second))).json();
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "stop");
  EXPECT_EQ(body.at("choices").at(0).at("stop_reason"), second);
}

TEST_F(CompletionsTest, EveryFieldReachesTheEngine) {
  start();
  const std::string fields =
      R"("model":"fake-model","n":2,"best_of":2,"max_tokens":7,"min_tokens":3,"temperature":0.5,"top_k":4,"top_p":0.25,
         "min_p":0.125,"repetition_penalty":1.5,"presence_penalty":-0.5,"frequency_penalty":0.75,
         "logit_bias":{"5":-100,"7":2.5},"seed":18446744073709551615,"stop":["x","y"],"stop_token_ids":[9],
         "include_stop_str_in_output":true,"ignore_eos":true,"cache_salt":"pepper","logprobs":3,
         "user":"u","metadata":{"a":"b"},"store":true)";
  ASSERT_EQ(post("/v1/completions", completion(fields)).status, 200);
  const engine::Request request = service_->submitted().at(0);
  EXPECT_EQ(request.prompt, kHello);
  EXPECT_EQ(request.n, 2);
  EXPECT_EQ(request.cache_salt, "pepper");
  EXPECT_EQ(request.tenant, "");
  const engine::SamplingParams& params = request.sampling;
  EXPECT_EQ(params.max_tokens, 7);
  EXPECT_EQ(params.min_tokens, 3);
  EXPECT_EQ(params.temperature, 0.5f);
  EXPECT_EQ(params.top_k, 4);
  EXPECT_EQ(params.top_p, 0.25f);
  EXPECT_EQ(params.min_p, 0.125f);
  EXPECT_EQ(params.repetition_penalty, 1.5f);
  EXPECT_EQ(params.presence_penalty, -0.5f);
  EXPECT_EQ(params.frequency_penalty, 0.75f);
  EXPECT_EQ(params.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -100.0f}, {7, 2.5f}}));
  EXPECT_EQ(params.seed, 18446744073709551615ull);
  EXPECT_EQ(params.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(params.stop_token_ids, std::vector<int32_t>{9});
  EXPECT_TRUE(params.include_stop_str_in_output);
  EXPECT_TRUE(params.ignore_eos);
  EXPECT_EQ(params.logprobs, 3);
}

TEST_F(CompletionsTest, RepeatPenaltyIsAnAlias) {
  start();
  ASSERT_EQ(post("/v1/completions", completion(R"("repeat_penalty":1.25)")).status, 200);
  EXPECT_EQ(service_->submitted().at(0).sampling.repetition_penalty, 1.25f);
}

TEST_F(CompletionsTest, NullFieldsCountAsAbsent) {
  start();
  const Reply reply =
      post("/v1/completions", completion(R"("n":null,"stop":null,"suffix":null,"logprobs":null,
      "seed":null,"stream":null,"stream_options":null,"temperature":null,"logit_bias":null)"));
  EXPECT_EQ(reply.status, 200) << reply.body;
}

TEST_F(CompletionsTest, AnEngineErrorBeforeTheFirstEventIsAStatus) {
  start();
  service_->fail_after(0);
  const Reply whole = post("/v1/completions", completion(""));
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(whole.error("type"), "server_error");
  EXPECT_EQ(post("/v1/completions", completion(R"("stream":true)")).status, 500);
}

TEST_F(CompletionsTest, AnEngineErrorInAStreamIsAnEventThenDone) {
  start();
  service_->hold_after(2);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", completion(R"("stream":true)")));
  ASSERT_TRUE(client.receive_until(FakeService::text_of(FakeService::token_at(kHello, 0, 1))));
  service_->fail_after(2);
  service_->release();
  const Reply reply = client.read();
  ASSERT_EQ(reply.status, 200);
  const auto events = events_of(reply.body);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[2].at("error").at("type"), "server_error");
  EXPECT_EQ(events[3], "[DONE]");
}

TEST_F(CompletionsTest, OneFailedSampleEndsTheRequestAndCancelsTheRest) {
  start();
  service_->fail_after(3);
  EXPECT_EQ(post("/v1/completions", completion(R"("n":3)")).status, 500);
  EXPECT_TRUE(service_->wait_until([](auto& service) { return service.running() == 0; }));
}

TEST_F(CompletionsTest, ARefusedSecondPromptCancelsTheFirst) {
  start({}, {.max_queued = 1});
  service_->hold_after(0);
  const Reply reply = post("/v1/completions", R"({"prompt":["a","b"]})");
  EXPECT_EQ(reply.status, 429);
  EXPECT_TRUE(service_->wait_until([](auto& service) { return service.running() == 0; }));
}

}  // namespace
}  // namespace tessera::server
