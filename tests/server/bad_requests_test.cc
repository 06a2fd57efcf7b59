// Every way we could think of to send a bad request: each is a 4xx in OpenAI's form that names the field, and
// neither the server nor another client's running stream notices.
#include "tests/server/client.h"

namespace tessera::server {
namespace {

const char* const kCompletions = "/v1/completions";
const char* const kChat = "/v1/chat/completions";
const char* const kTokenize = "/tokenize";
const char* const kDetokenize = "/detokenize";
constexpr int kMaxValues = 20'000;  // the limit of this test's server, to keep its bombs small

struct Bad {
  const char* route;
  std::string body;
  std::string param;
  std::string code = "invalid_value";
  int status = 400;
};

// {"prompt":"x", FIELDS} and {"messages":[...], FIELDS}.
std::string completion(const std::string& fields) {
  return "{\"prompt\":\"x\"," + fields + "}";
}
std::string chat(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"x"}],)" + fields + "}";
}
std::string messages(const std::string& list) {
  return "{\"messages\":" + list + "}";
}
std::string repeated(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += (i > 0 ? "," : "") + text;
  return out;
}
std::string biases(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += format("{}\"{}\":1", i > 0 ? "," : "", i);
  return "{" + out + "}";
}

std::vector<Bad> broken_json() {
  const char* json = "invalid_json";
  std::vector<Bad> rows;
  for (const std::string& body :
       std::vector<std::string>{"",
                                " ",
                                "{",
                                "}",
                                "{]",
                                "nul",
                                "\"",
                                "{\"prompt\"}",
                                "{\"prompt\":}",
                                "{\"prompt\":\"x\",}",
                                "{prompt:\"x\"}",
                                "{'prompt':'x'}",
                                "{\"prompt\":\"x\"",
                                "{\"prompt\":\"x}",
                                "{\"prompt\":\"x\"}}",
                                "{\"prompt\":\"x\"}{}",
                                "{\"prompt\":\"x\"} x",
                                "// c\n{\"prompt\":\"x\"}",
                                "{\"prompt\":\"x\"}//",
                                completion("\"seed\":NaN"),
                                completion("\"seed\":Infinity"),
                                completion("\"seed\":-Infinity"),
                                completion("\"seed\":01"),
                                completion("\"seed\":1."),
                                completion("\"seed\":.5"),
                                completion("\"seed\":+1"),
                                completion("\"seed\":0x1"),
                                completion("\"temperature\":1e999"),
                                completion("\"temperature\":-1e999"),
                                completion("\"prompt\":\"y\""),
                                completion("\"top_p\":1,\"top_p\":1"),
                                completion("\"stream_options\":{\"a\":1,\"a\":1}"),
                                "\xEF\xBB\xBF{\"prompt\":\"x\"}",
                                "{\"prompt\":\"\xC3\"}",
                                "{\"prompt\":\"\xC0\xAF\"}",
                                "{\"prompt\":\"\xED\xA0\x80\"}",
                                "{\"prompt\":\"\xF4\x90\x80\x80\"}",
                                "{\"prompt\":\"\xFF\"}",
                                "{\"pro\xC3mpt\":\"x\"}",
                                "{\"prompt\":\"\\ud800\"}",
                                "{\"prompt\":\"\\udc00\"}",
                                "{\"prompt\":\"\\ud800\\u0041\"}",
                                "{\"prompt\":\"\\x41\"}",
                                "{\"prompt\":\"\\u12g4\"}",
                                "{\"prompt\":\"a\tb\"}",
                                "{\"prompt\":\"a\nb\"}",
                                std::string("{\"prompt\":\"a\0b\"}", 15),
                                "{\"prompt\":\"x\"}" + std::string(1, '\0'),
                                std::string(65, '[') + std::string(65, ']'),
                                std::string(200'000, '['),
                                "{\"prompt\":" + std::string(70, '[') + "1" + std::string(70, ']') + "}",
                                "[" + repeated("1", kMaxValues + 1) + "]"}) {
    rows.push_back({kCompletions, body, "body", json});
  }
  for (const char* body : {"[]", "1", "\"x\"", "null", "true"}) {
    for (const char* route : {kCompletions, kChat, kTokenize, kDetokenize}) {
      rows.push_back({route, body, "body", "invalid_type"});
    }
  }
  return rows;
}

std::vector<Bad> wrong_types() {
  const char* type = "invalid_type";
  std::vector<Bad> rows;
  for (const char* field : {"n", "best_of", "max_tokens", "min_tokens", "top_k", "logprobs", "seed"}) {
    for (const char* value : {"\"1\"", "true", "[1]", "{}"}) {
      rows.push_back({kCompletions, completion(format("\"{}\":{}", field, value)), field, type});
    }
  }
  for (const char* field : {"temperature", "top_p", "min_p", "repetition_penalty", "repeat_penalty",
                            "presence_penalty", "frequency_penalty"}) {
    for (const char* value : {"\"0.5\"", "false", "[0.5]"}) {
      rows.push_back({kCompletions, completion(format("\"{}\":{}", field, value)), field, type});
    }
  }
  for (const char* field :
       {"stream", "echo", "ignore_eos", "include_stop_str_in_output", "return_token_ids"}) {
    for (const char* value : {"\"true\"", "1"}) {
      rows.push_back({kCompletions, completion(format("\"{}\":{}", field, value)), field, type});
    }
  }
  const std::vector<Bad> others = {
      {kCompletions, completion("\"model\":1"), "model", type},
      {kCompletions, completion("\"cache_salt\":1"), "cache_salt", type},
      {kCompletions, completion("\"stop\":1"), "stop", type},
      {kCompletions, completion("\"stop\":{}"), "stop", type},
      {kCompletions, completion("\"stop\":[\"a\",1]"), "stop[1]", type},
      {kCompletions, completion("\"stop\":[null]"), "stop[0]", type},
      {kCompletions, completion("\"stop_token_ids\":5"), "stop_token_ids", type},
      {kCompletions, completion("\"stop_token_ids\":[\"5\"]"), "stop_token_ids[0]", type},
      {kCompletions, completion("\"logit_bias\":[]"), "logit_bias", type},
      {kCompletions, completion("\"logit_bias\":{\"5\":\"1\"}"), "logit_bias[5]", type},
      {kCompletions, completion("\"logit_bias\":{\"5\":null}"), "logit_bias[5]", type},
      {kCompletions, completion("\"stream\":true,\"stream_options\":true"), "stream_options", type},
      {kCompletions, completion("\"stream\":true,\"stream_options\":{\"include_usage\":1}"),
       "stream_options.include_usage", type},
      {kCompletions, R"({"prompt":1})", "prompt", type},
      {kCompletions, R"({"prompt":true})", "prompt", type},
      {kCompletions, R"({"prompt":{}})", "prompt", type},
      {kCompletions, R"({"prompt":[1,"a"]})", "prompt[1]", type},
      {kCompletions, R"({"prompt":["a",1]})", "prompt[1]", type},
      {kCompletions, R"({"prompt":["a",null]})", "prompt[1]", type},
      {kCompletions, R"({"prompt":[[1],["a"]]})", "prompt[1][0]", type},
      {kChat, messages("{}"), "messages", type},
      {kChat, messages("\"hi\""), "messages", type},
      {kChat, messages("[1]"), "messages[0]", type},
      {kChat, messages("[\"hi\"]"), "messages[0]", type},
      {kChat, messages(R"([{"role":1,"content":"x"}])"), "messages[0].role", type},
      {kChat, messages(R"([{"role":"user","content":1}])"), "messages[0].content", type},
      {kChat, messages(R"([{"role":"user","content":{}}])"), "messages[0].content", type},
      {kChat, messages(R"([{"role":"user","content":["x"]}])"), "messages[0].content[0]", type},
      {kChat, messages(R"([{"role":"user","content":[{"type":"text","text":1}]}])"),
       "messages[0].content[0].text", type},
      {kChat, messages(R"([{"role":"user","content":"x","name":1}])"), "messages[0].name", type},
      {kChat, chat("\"logprobs\":1"), "logprobs", type},
      {kChat, chat("\"logprobs\":true,\"top_logprobs\":\"2\""), "top_logprobs", type},
      {kChat, chat("\"response_format\":\"text\""), "response_format", type},
      {kChat, chat("\"max_completion_tokens\":\"9\""), "max_completion_tokens", type},
      {kChat, chat("\"add_generation_prompt\":1"), "add_generation_prompt", type},
      {kTokenize, R"({"prompt":1})", "prompt", type},
      {kTokenize, R"({"content":[]})", "content", type},
      {kTokenize, R"({"prompt":"x","add_special":1})", "add_special", type},
      {kTokenize, R"({"prompt":"x","add_special_tokens":1})", "add_special_tokens", type},
      {kTokenize, R"({"prompt":"x","parse_special":"y"})", "parse_special", type},
      {kDetokenize, R"({"tokens":"1"})", "tokens", type},
      {kDetokenize, R"({"tokens":[1,"2"]})", "tokens[1]", type},
  };
  rows.insert(rows.end(), others.begin(), others.end());
  return rows;
}

std::vector<Bad> wrong_values() {
  const std::string big = "9223372036854775808", huge = "18446744073709551616";
  return {
      {kCompletions, completion("\"n\":0"), "n"},
      {kCompletions, completion("\"n\":-1"), "n"},
      {kCompletions, completion("\"n\":129"), "n"},
      {kCompletions, completion("\"n\":1000000000"), "n"},
      {kCompletions, completion("\"n\":1.5"), "n"},
      {kCompletions, completion("\"n\":" + big), "n"},
      {kCompletions, completion("\"best_of\":2"), "best_of"},
      {kCompletions, completion("\"n\":2,\"best_of\":1"), "best_of"},
      {kCompletions, completion("\"max_tokens\":0"), "max_tokens"},
      {kCompletions, completion("\"max_tokens\":-1"), "max_tokens"},
      {kCompletions, completion("\"max_tokens\":1.0"), "max_tokens"},
      {kCompletions, completion("\"max_tokens\":" + big), "max_tokens"},
      {kCompletions, completion("\"max_tokens\":2147483648"), "max_tokens"},
      {kCompletions, completion("\"min_tokens\":-1"), "min_tokens"},
      {kCompletions, completion("\"min_tokens\":17"), "min_tokens"},
      {kCompletions, completion("\"temperature\":-0.1"), "temperature"},
      {kCompletions, completion("\"temperature\":2.1"), "temperature"},
      {kCompletions, completion("\"temperature\":1e-30"), "temperature"},
      {kCompletions, completion("\"temperature\":1e30"), "temperature"},
      {kCompletions, completion("\"temperature\":1e300"), "temperature"},
      {kCompletions, completion("\"top_k\":-2"), "top_k"},
      {kCompletions, completion("\"top_k\":" + big), "top_k"},
      {kCompletions, completion("\"top_p\":0"), "top_p"},
      {kCompletions, completion("\"top_p\":1.01"), "top_p"},
      {kCompletions, completion("\"min_p\":-0.01"), "min_p"},
      {kCompletions, completion("\"min_p\":2"), "min_p"},
      {kCompletions, completion("\"repetition_penalty\":0"), "repetition_penalty"},
      {kCompletions, completion("\"repetition_penalty\":1e9"), "repetition_penalty"},
      {kCompletions, completion("\"repeat_penalty\":-1"), "repeat_penalty"},
      {kCompletions, completion("\"repeat_penalty\":1,\"repetition_penalty\":1"), "repeat_penalty"},
      {kCompletions, completion("\"presence_penalty\":-2.1"), "presence_penalty"},
      {kCompletions, completion("\"presence_penalty\":1e9"), "presence_penalty"},
      {kCompletions, completion("\"frequency_penalty\":2.1"), "frequency_penalty"},
      {kCompletions, completion("\"seed\":-1"), "seed"},
      {kCompletions, completion("\"seed\":" + huge), "seed"},
      {kCompletions, completion("\"seed\":0.5"), "seed"},
      {kCompletions, completion("\"logprobs\":-1"), "logprobs"},
      {kCompletions, completion("\"logprobs\":21"), "logprobs"},
      {kCompletions, completion("\"logprobs\":1000000"), "logprobs"},
      {kCompletions, completion("\"stop\":\"\""), "stop"},
      {kCompletions, completion("\"stop\":[\"a\",\"\"]"), "stop"},
      {kCompletions, completion("\"stop\":[" + repeated("\"a\"", 17) + "]"), "stop"},
      {kCompletions, completion("\"stop\":[" + repeated("\"a\"", 10'000) + "]"), "stop"},
      {kCompletions, completion("\"stop\":\"" + std::string(257, 'a') + "\""), "stop"},
      {kCompletions, completion("\"stop_token_ids\":[1000]"), "stop_token_ids"},
      {kCompletions, completion("\"stop_token_ids\":[-1]"), "stop_token_ids[0]"},
      {kCompletions, completion("\"stop_token_ids\":[1,2.5]"), "stop_token_ids[1]"},
      {kCompletions, completion("\"stop_token_ids\":[" + repeated("1", 65) + "]"), "stop_token_ids"},
      {kCompletions, completion("\"logit_bias\":{\"1000\":1}"), "logit_bias"},
      {kCompletions, completion("\"logit_bias\":{\"-1\":1}"), "logit_bias"},
      {kCompletions, completion("\"logit_bias\":{\"5\":100.5}"), "logit_bias"},
      {kCompletions, completion("\"logit_bias\":{\"5\":-101}"), "logit_bias"},
      {kCompletions, completion("\"logit_bias\":{\"x\":1}"), "logit_bias[x]"},
      {kCompletions, completion("\"logit_bias\":{\"\":1}"), "logit_bias[]"},
      {kCompletions, completion("\"logit_bias\":{\"5 \":1}"), "logit_bias[5 ]"},
      {kCompletions, completion("\"logit_bias\":{\"99999999999\":1}"), "logit_bias[99999999999]"},
      {kCompletions, completion("\"logit_bias\":" + biases(1025)), "logit_bias"},
      {kCompletions, completion("\"stream_options\":{}"), "stream_options"},
      {kCompletions, completion("\"stream\":false,\"stream_options\":{\"include_usage\":true}"),
       "stream_options"},
      {kCompletions, completion("\"cache_salt\":\"\""), "cache_salt"},
      {kCompletions, completion("\"cache_salt\":\"" + std::string(257, 's') + "\""), "cache_salt"},
      {kCompletions, completion("\"model\":\"gpt-4\""), "model", "model_not_found", 404},
      {kCompletions, completion("\"model\":\"\""), "model", "model_not_found", 404},
      {kChat, chat("\"model\":\"FAKE-MODEL\""), "model", "model_not_found", 404},
      {kTokenize, R"({"prompt":"x","model":"y"})", "model", "model_not_found", 404},
      {kDetokenize, R"({"tokens":[1],"model":"y"})", "model", "model_not_found", 404},
      {kCompletions, R"({"prompt":""})", "prompt"},
      {kCompletions, R"({"prompt":[]})", "prompt"},
      {kCompletions, R"({"prompt":["a",""]})", "prompt[1]"},
      {kCompletions, R"({"prompt":["a",[]]})", "prompt[1]"},
      {kCompletions, R"({"prompt":[[]]})", "prompt[0]"},
      {kCompletions, R"({"prompt":[-1]})", "prompt[0]"},
      {kCompletions, R"({"prompt":[1,1000]})", "prompt"},
      {kCompletions, R"({"prompt":[1,2.5]})", "prompt[1]"},
      {kCompletions, R"({"prompt":[2147483648]})", "prompt[0]"},
      {kCompletions, R"({"prompt":[[1],[1000]]})", "prompt[1]"},
      {kCompletions, "{\"prompt\":[" + repeated("\"a\"", 129) + "]}", "prompt"},
      {kCompletions, "{\"n\":128,\"prompt\":[\"a\",\"b\"]}", "prompt"},
      {kCompletions, R"({"prompt":"@untokenizable"})", "prompt"},
      {kCompletions, "{\"prompt\":\"" + std::string(4096, 'a') + "\"}", "prompt", "context_length_exceeded"},
      {kCompletions, "{\"prompt\":\"" + std::string(1 << 20, 'a') + "\"}", "prompt",
       "context_length_exceeded"},
      {kCompletions, "{\"prompt\":[\"a\",\"" + std::string(5000, 'a') + "\"]}", "prompt[1]",
       "context_length_exceeded"},
      {kCompletions, "{\"prompt\":[" + repeated("1", 4096) + "]}", "prompt", "context_length_exceeded"},
      {kChat, messages("[{\"role\":\"user\",\"content\":\"" + std::string(5000, 'a') + "\"}]"), "messages",
       "context_length_exceeded"},
      {kChat, messages("[]"), "messages"},
      {kChat, messages(R"([{"role":"tool","content":"x"}])"), "messages[0].role"},
      {kChat, messages(R"([{"role":"","content":"x"}])"), "messages[0].role"},
      {kChat, messages(R"([{"role":"user","content":"x"},{"role":"User","content":"x"}])"),
       "messages[1].role"},
      {kChat, messages(R"([{"role":"user","content":[]}])"), "messages[0].content"},
      {kChat, messages(R"([{"role":"user","content":"@raise"}])"), "messages"},
      {kChat, chat("\"top_logprobs\":2"), "top_logprobs"},
      {kChat, chat("\"logprobs\":false,\"top_logprobs\":2"), "top_logprobs"},
      {kChat, chat("\"logprobs\":true,\"top_logprobs\":21"), "top_logprobs"},
      {kChat, chat("\"logprobs\":true,\"top_logprobs\":-1"), "top_logprobs"},
      {kChat, chat("\"max_completion_tokens\":0"), "max_completion_tokens"},
      {kChat, chat("\"max_tokens\":0"), "max_tokens"},
      {kChat, chat("\"max_tokens\":5,\"max_completion_tokens\":5"), "max_completion_tokens"},
      {kChat, chat("\"n\":500"), "n"},
      {kTokenize, R"({"prompt":"x","content":"y"})", "content"},
      {kTokenize, R"({"prompt":"x","messages":[]})", "messages"},
      {kTokenize, messages("[]"), "messages"},
      {kTokenize, messages(R"([{"role":"user","content":"@raise"}])"), "messages"},
      {kDetokenize, R"({"tokens":[1000]})", "tokens[0]"},
      {kDetokenize, R"({"tokens":[1,-1]})", "tokens[1]"},
      {kDetokenize, R"({"tokens":[1,1e3]})", "tokens[1]"},
  };
}

std::vector<Bad> fields_that_are_not_there() {
  std::vector<Bad> rows = {
      {kCompletions, "{}", "prompt", "missing_required_parameter"},
      {kCompletions, R"({"prompt":null})", "prompt", "missing_required_parameter"},
      {kChat, "{}", "messages", "missing_required_parameter"},
      {kChat, R"({"messages":null})", "messages", "missing_required_parameter"},
      {kChat, messages(R"([{"content":"x"}])"), "messages[0].role", "missing_required_parameter"},
      {kChat, messages(R"([{"role":"user"}])"), "messages[0].content", "missing_required_parameter"},
      {kChat, messages(R"([{"role":"user","content":null}])"), "messages[0].content",
       "missing_required_parameter"},
      {kChat, messages(R"([{"role":"user","content":[{"text":"x"}]}])"), "messages[0].content[0].type",
       "missing_required_parameter"},
      {kChat, messages(R"([{"role":"user","content":[{"type":"text"}]}])"), "messages[0].content[0].text",
       "missing_required_parameter"},
      {kTokenize, "{}", "prompt", "missing_required_parameter"},
      {kDetokenize, "{}", "tokens", "missing_required_parameter"},
      {kCompletions, completion("\"echo\":true,\"logprobs\":1,\"n\":2"), "n", "invalid_value"},
      {kCompletions, completion("\"echo\":true,\"max_tokens\":0,\"min_tokens\":1"), "max_tokens",
       "invalid_value"},
      {kCompletions, completion("\"suffix\":\"y\""), "suffix", "unsupported_parameter"},
      {kCompletions, completion("\"response_format\":{\"type\":\"json_object\"}"), "response_format",
       "unsupported_parameter"},
      {kChat, chat("\"response_format\":{\"type\":\"json_object\"}"), "response_format",
       "unsupported_parameter"},
      {kChat, chat("\"response_format\":{}"), "response_format", "unsupported_parameter"},
      {kChat, chat("\"response_format\":{\"type\":\"text\",\"x\":1}"), "response_format.x",
       "unknown_parameter"},
      {kChat, messages(R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])"),
       "messages[0].content[0].type", "unsupported_parameter"},
      {kChat, messages(R"([{"role":"user","content":[{"type":"text","text":"x","y":1}]}])"),
       "messages[0].content[0].y", "unknown_parameter"},
      {kChat, messages(R"([{"role":"assistant","content":"x","tool_calls":[]}])"), "messages[0].tool_calls",
       "unsupported_parameter"},
      {kChat, messages(R"([{"role":"user","content":"x","tool_call_id":"1"}])"), "messages[0].tool_call_id",
       "unsupported_parameter"},
      {kChat, messages(R"([{"role":"user","content":"x","Role":"y"}])"), "messages[0].Role",
       "unknown_parameter"},
      {kCompletions, completion("\"stream\":true,\"stream_options\":{\"x\":1}"), "stream_options.x",
       "unknown_parameter"},
      {kCompletions, completion("\"messages\":[]"), "messages", "unknown_parameter"},
      {kCompletions, completion("\"max_completion_tokens\":5"), "max_completion_tokens", "unknown_parameter"},
      {kCompletions, completion("\"Temperature\":1"), "Temperature", "unknown_parameter"},
      {kCompletions, completion("\"n_predict\":5"), "n_predict", "unknown_parameter"},
      {kCompletions, completion("\"n_discard\":-5"), "n_discard", "unknown_parameter"},
      {kCompletions, completion("\"\":1"), "", "unknown_parameter"},
      {kCompletions, completion("\"top_logprobs\":1"), "top_logprobs", "unknown_parameter"},
      {kChat, chat("\"prompt\":\"x\""), "prompt", "unknown_parameter"},
      {kChat, chat("\"echo\":true"), "echo", "unknown_parameter"},
      {kChat, chat("\"suffix\":\"x\""), "suffix", "unknown_parameter"},
      {kTokenize, R"({"prompt":"x","with_pieces":true})", "with_pieces", "unknown_parameter"},
      {kTokenize, messages(R"([{"role":"user","content":"x"}],"add_special":true)"), "add_special",
       "unknown_parameter"},
      {kDetokenize, R"({"tokens":[1],"skip":1})", "skip", "unknown_parameter"},
  };
  for (const char* field :
       {"tools", "tool_choice", "functions", "function_call", "audio", "modalities", "prediction",
        "reasoning_effort", "service_tier", "chat_template", "chat_template_kwargs", "continue_final_message",
        "web_search_options", "parallel_tool_calls", "structured_outputs"}) {
    rows.push_back({kChat, chat(format("\"{}\":[]", field)), field, "unsupported_parameter"});
  }
  return rows;
}

class BadRequestsTest : public ServerTest {};

TEST_F(BadRequestsTest, EachNamesItsFieldAndDisturbsNobody) {
  start({.limits = {.json_values = kMaxValues}});
  // A stream of somebody else, held in the middle while all of this goes on.
  service_->hold_after(5);
  Client other(port());
  other.send(Client::text_of("POST", kCompletions, R"({"prompt":"other","max_tokens":10,"stream":true})"));
  const std::vector<int32_t> prompt = FakeService::prompt_of("other");
  ASSERT_TRUE(other.receive_until(FakeService::text_of(FakeService::token_at(prompt, 0, 4))));

  std::set<std::pair<std::string, std::string>> pairs;
  size_t count = 0;
  for (const auto& rows : {broken_json(), wrong_types(), wrong_values(), fields_that_are_not_there()}) {
    for (const Bad& bad : rows) {
      const Reply reply = post(bad.route, bad.body);
      const std::string shown = std::string(bad.route) + " " + bad.body.substr(0, 120);
      ASSERT_EQ(reply.status, bad.status) << shown << "\n" << reply.body;
      EXPECT_EQ(reply.error("param"), bad.param) << shown << "\n" << reply.body;
      EXPECT_EQ(reply.error("code"), bad.code) << shown << "\n" << reply.body;
      EXPECT_EQ(reply.error("type"), "invalid_request_error") << shown;
      const std::string message = reply.error("message");
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      EXPECT_LT(message.size(), 400u) << message;
      EXPECT_TRUE(message.starts_with(bad.param.substr(0, bad.param.find('['))))
          << message << " / " << bad.param;
      pairs.insert({bad.code, bad.param});
      ++count;
    }
  }
  EXPECT_GE(count, 150u);
  EXPECT_GE(pairs.size(), 60u);
  std::printf("%zu bad requests, %zu pairs of code and field\n", count, pairs.size());
  EXPECT_EQ(service_->submitted().size(), 1u);

  service_->release();
  const Reply reply = other.read();
  std::string text;
  for (const json::value& event : events_of(reply.body)) {
    if (event.is_object()) text += str(event.at("choices").at(0).at("text"));
  }
  EXPECT_EQ(text, FakeService::expected(prompt, 0, 10));
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(BadRequestsTest, APromptBeyondTheContextIsRefusedWithBothNumbers) {
  start();
  const std::string message =
      post(kCompletions, "{\"prompt\":[" + repeated("1", 5000) + "]}").error("message");
  EXPECT_NE(message.find("5000"), std::string::npos) << message;
  EXPECT_NE(message.find("4096"), std::string::npos) << message;
}

TEST_F(BadRequestsTest, ARefusalKeepsTheConnection) {
  start();
  Client client(port());
  EXPECT_EQ(client.request("POST", kCompletions, "{").status, 400);
  EXPECT_EQ(client.request("POST", kCompletions, completion("\"n\":0")).status, 400);
  EXPECT_EQ(client.request("POST", kCompletions, completion("\"n\":1")).status, 200);
}

}  // namespace
}  // namespace tessera::server
