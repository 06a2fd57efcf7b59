#include "tests/server/client.h"

namespace tessera::server {
namespace {

using ChatTest = ServerTest;

std::string chat(const std::string& fields = "") {
  return R"({"messages":[{"role":"user","content":"hi"}])" + (fields.empty() ? "" : "," + fields) + "}";
}

// The ids that the fake template makes of messages, with the generation prompt.
std::vector<int32_t> rendered(const std::vector<std::pair<std::string, std::string>>& messages,
                              bool generate = true) {
  FakeService service;
  std::vector<engine::ChatMessage> list;
  for (const auto& [role, content] : messages) list.push_back({.role = role, .content = content});
  return service.render_chat(list, generate)->tokens;
}

TEST_F(ChatTest, AnswersWithOneMessage) {
  start();
  const json::value body = post("/v1/chat/completions", chat("\"max_tokens\":3")).json();
  EXPECT_EQ(body.at("object"), "chat.completion");
  EXPECT_TRUE(body.at("id").as_string().starts_with("chatcmpl-"));
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_EQ(str(choice.at("message").at("content")), FakeService::expected(rendered({{"user", "hi"}}), 0, 3));
  EXPECT_EQ(choice.at("finish_reason"), "length");
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 3);
}

TEST_F(ChatTest, WithoutMaxTokensTheContextIsTheLimit) {
  start({}, {.max_model_len = 40});
  const json::value body = post("/v1/chat/completions", chat()).json();
  EXPECT_EQ(body.at("usage").at("total_tokens"), 40);
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "length");
}

TEST_F(ChatTest, MaxCompletionTokensIsTheNewName) {
  start();
  const json::value body = post("/v1/chat/completions", chat("\"max_completion_tokens\":5")).json();
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 5);
}

TEST_F(ChatTest, RolesNamesAndTextPartsReachTheTemplate) {
  start();
  const Reply reply = post("/v1/chat/completions", R"({"max_tokens":1,"messages":[
      {"role":"developer","content":"be brief"},
      {"role":"user","name":"ada","content":[{"type":"text","text":"one"},{"type":"text","text":"two"}]},
      {"role":"assistant","content":"three"},{"role":"user","content":""}]})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(
      service_->submitted().at(0).prompt,
      rendered({{"system", "be brief"}, {"user:ada", "one\ntwo"}, {"assistant", "three"}, {"user", ""}}));
}

TEST_F(ChatTest, TheGenerationPromptCanBeLeftOut) {
  start();
  ASSERT_EQ(post("/v1/chat/completions", chat(R"("add_generation_prompt":false,"max_tokens":1)")).status,
            200);
  EXPECT_EQ(service_->submitted().at(0).prompt, rendered({{"user", "hi"}}, false));
}

TEST_F(ChatTest, StreamsTheRoleThenTextThenFinish) {
  start();
  const Reply reply = post("/v1/chat/completions", chat(R"("stream":true,"max_tokens":3)"));
  const auto events = events_of(reply.body);
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events[0].at("object"), "chat.completion.chunk");
  EXPECT_EQ(events[0].at("choices").at(0).at("delta"),
            (json::object{{"role", "assistant"}, {"content", ""}}));
  std::string text;
  for (size_t i = 1; i < 4; ++i) {
    const json::object& delta = events[i].at("choices").at(0).at("delta").as_object();
    EXPECT_EQ(delta.size(), 1u);
    text += str(delta.at("content"));
    EXPECT_TRUE(events[i].at("choices").at(0).at("finish_reason").is_null());
  }
  EXPECT_EQ(text, FakeService::expected(rendered({{"user", "hi"}}), 0, 3));
  EXPECT_TRUE(events[4].at("choices").at(0).at("delta").as_object().empty());
  EXPECT_EQ(events[4].at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(events[5], "[DONE]");
  for (size_t i = 1; i < 5; ++i) EXPECT_EQ(events[i].at("id"), events[0].at("id"));
}

TEST_F(ChatTest, SeveralSamplesStreamSideBySide) {
  start();
  const auto events =
      events_of(post("/v1/chat/completions",
                     chat(R"("stream":true,"n":3,"max_tokens":4,"stream_options":{"include_usage":true})"))
                    .body);
  std::map<int64_t, std::string> texts;
  std::map<int64_t, int> roles, finishes;
  for (const json::value& event : events) {
    if (event.is_string() || event.at("choices").as_array().empty()) continue;
    const json::value& choice = event.at("choices").at(0);
    const int64_t index = choice.at("index").as_int64();
    const json::object& delta = choice.at("delta").as_object();
    roles[index] += delta.contains("role") ? 1 : 0;
    finishes[index] += choice.at("finish_reason").is_string() ? 1 : 0;
    if (delta.contains("content")) texts[index] += str(delta.at("content"));
  }
  const std::vector<int32_t> prompt = rendered({{"user", "hi"}});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(texts[i], FakeService::expected(prompt, i, 4));
    EXPECT_EQ(roles[i], 1);
    EXPECT_EQ(finishes[i], 1);
  }
  EXPECT_EQ(events[events.size() - 2].at("usage").at("completion_tokens"), 12);
}

TEST_F(ChatTest, LogprobsHaveTokensBytesAndTheTop) {
  start();
  const json::value body =
      post("/v1/chat/completions", chat(R"("logprobs":true,"top_logprobs":2,"max_tokens":2)")).json();
  const json::value& content = body.at("choices").at(0).at("logprobs").at("content");
  ASSERT_EQ(content.as_array().size(), 2u);
  const int32_t token = FakeService::token_at(rendered({{"user", "hi"}}), 0, 0);
  const std::string text = FakeService::text_of(token);
  EXPECT_EQ(str(content.at(0).at("token")), text);
  EXPECT_EQ(content.at(0).at("logprob"), -0.5);
  ASSERT_EQ(content.at(0).at("bytes").as_array().size(), text.size());
  EXPECT_EQ(content.at(0).at("bytes").at(0), ' ');
  ASSERT_EQ(content.at(0).at("top_logprobs").as_array().size(), 2u);
  EXPECT_EQ(str(content.at(0).at("top_logprobs").at(1).at("token")), FakeService::text_of(token + 1));
}

TEST_F(ChatTest, LogprobsWithoutTopListNoAlternatives) {
  start();
  const json::value body = post("/v1/chat/completions", chat(R"("logprobs":true,"max_tokens":1)")).json();
  EXPECT_TRUE(
      body.at("choices").at(0).at("logprobs").at("content").at(0).at("top_logprobs").as_array().empty());
}

TEST_F(ChatTest, TokenIdsComeWithThePromptsWhenAsked) {
  start();
  const std::vector<int32_t> prompt = rendered({{"user", "hi"}});
  const json::value whole =
      post("/v1/chat/completions", chat(R"("return_token_ids":true,"max_tokens":2)")).json();
  EXPECT_EQ(whole.at("prompt_token_ids").as_array().size(), prompt.size());
  EXPECT_EQ(whole.at("choices").at(0).at("token_ids"),
            (json::array{FakeService::token_at(prompt, 0, 0), FakeService::token_at(prompt, 0, 1)}));
  const auto events = events_of(
      post("/v1/chat/completions", chat(R"("return_token_ids":true,"stream":true,"max_tokens":1)")).body);
  EXPECT_EQ(events.at(0).at("prompt_token_ids").as_array().size(), prompt.size());
  EXPECT_EQ(events.at(1).at("choices").at(0).at("token_ids"),
            (json::array{FakeService::token_at(prompt, 0, 0)}));
}

TEST_F(ChatTest, PlainTextIsAnAcceptedResponseFormat) {
  start();
  EXPECT_EQ(post("/v1/chat/completions", chat(R"("response_format":{"type":"text"},"max_tokens":1)")).status,
            200);
}

TEST_F(ChatTest, ATemplateThatRefusesIsABadRequest) {
  start();
  const Reply reply = post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"@raise"}]})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("param"), "messages");
}

}  // namespace
}  // namespace tessera::server
