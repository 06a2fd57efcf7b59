#include <cmath>
#include <mutex>

#include "server/routes.h"
#include "tests/server/client.h"

namespace tessera::server {
namespace {

using RoutesTest = ServerTest;

TEST_F(RoutesTest, ModelsListsTheOneThatIsServed) {
  start({.served_model_name = "org/tiny:1"});
  const json::value list = get("/v1/models").json();
  EXPECT_EQ(list.at("object"), "list");
  EXPECT_EQ(list.at("data").at(0).at("id"), "org/tiny:1");
  EXPECT_EQ(list.at("data").at(0).at("max_model_len"), 4096);
  EXPECT_EQ(get("/v1/models/org/tiny:1").json().at("id"), "org/tiny:1");
  EXPECT_EQ(get("/v1/models/org%2Ftiny%3A1").json().at("id"), "org/tiny:1");
  const Reply other = get("/v1/models/fake-model");
  EXPECT_EQ(other.status, 404);
  EXPECT_EQ(other.error("code"), "model_not_found");
  EXPECT_EQ(get("/v1/models/%zz").status, 404);
}

TEST_F(RoutesTest, TokenizeTakesVllmsAndLlamaServersField) {
  start();
  const json::value body = post("/tokenize", R"({"prompt":"hi"})").json();
  EXPECT_EQ(body.at("tokens"), (json::array{256, 104, 105}));
  EXPECT_EQ(body.at("count"), 3);
  EXPECT_EQ(body.at("max_model_len"), 4096);
  EXPECT_EQ(post("/tokenize", R"({"content":"hi"})").json().at("tokens"), (json::array{104, 105}));
  EXPECT_EQ(post("/tokenize", R"({"content":"hi","add_special":true})").json().at("count"), 3);
  EXPECT_EQ(post("/tokenize", R"({"prompt":"hi","add_special_tokens":false})").json().at("count"), 2);
  EXPECT_EQ(post("/tokenize", R"({"content":"<|im_end|>"})").json().at("count"), 10);
  EXPECT_EQ(post("/tokenize", R"({"content":"<|im_end|>","parse_special":true})").json().at("tokens"),
            (json::array{258}));
}

TEST_F(RoutesTest, TokenizeTellsHowManyBytesTheVocabularyLacks) {
  start();
  const json::value body = post("/tokenize", R"({"prompt":"h\u0001i\u0001"})").json();
  EXPECT_EQ(body.at("tokens"), (json::array{256, 104, 105}));
  EXPECT_EQ(body.at("left_out_bytes"), 2);
  EXPECT_EQ(post("/tokenize", R"({"prompt":"hi"})").json().at("left_out_bytes"), 0);
}

TEST_F(RoutesTest, TokenizeRendersMessages) {
  start();
  FakeService reference;
  const size_t count = reference.render_chat({{.role = "user", .content = "x"}}, true)->tokens.size();
  EXPECT_EQ(post("/tokenize", R"({"messages":[{"role":"user","content":"x"}]})").json().at("count"), count);
}

TEST_F(RoutesTest, DetokenizeAnswersUnderBothNames) {
  start();
  const json::value body = post("/detokenize", R"({"tokens":[104,105,300]})").json();
  EXPECT_EQ(body.at("prompt"), "hi w300");
  EXPECT_EQ(body.at("content"), "hi w300");
}

TEST_F(RoutesTest, DetokenizeNeverWritesBrokenUtf8) {
  start();
  EXPECT_EQ(post("/detokenize", R"({"tokens":[104,195]})").json().at("content"), "h\xEF\xBF\xBD");
}

TEST_F(RoutesTest, HealthIsOk) {
  start();
  const Reply reply = get("/health");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.json().at("status"), "ok");
}

TEST_F(RoutesTest, HeadAnswersWithoutABody) {
  start();
  Client client(port());
  const Reply head = client.request("HEAD", "/v1/models");
  EXPECT_EQ(head.status, 200);
  const Reply next = client.request("GET", "/v1/models");
  EXPECT_EQ(next.status, 200);
  EXPECT_EQ(head.headers.at("content-length"), std::to_string(next.body.size()));
}

TEST_F(RoutesTest, MetricsAreInPrometheusTextForm) {
  start();
  ASSERT_EQ(post("/v1/completions", R"({"prompt":"hello","max_tokens":4})").status, 200);
  const Reply reply = get("/metrics");
  ASSERT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  const std::string& text = reply.body;
  for (const char* line :
       {"tessera:kv_blocks{state=\"free\"} 32\n", "tessera:kv_blocks{state=\"cached\"} 16\n",
        "tessera:kv_blocks{state=\"referenced\"} 16\n", "tessera:generation_tokens_total 4\n",
        "tessera:prompt_tokens_total 6\n", "tessera:num_requests_running 0\n",
        "# TYPE tessera:attention_blocks_read_total counter\n",
        "# TYPE tessera:prompt_tokens_computed_total counter\n",
        "tessera:time_to_first_token_seconds_bucket{le=\"0.1\"} 1\n",
        "tessera:time_to_first_token_seconds_bucket{le=\"1\"} 3\n",
        "tessera:time_to_first_token_seconds_bucket{le=\"+Inf\"} 6\n",
        "tessera:time_to_first_token_seconds_sum 4.5\n", "tessera:time_to_first_token_seconds_count 6\n",
        "tessera:http_responses_total{code=\"200\"} 1\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line;
  }
  const size_t at = text.find("\nprocess_resident_memory_bytes ");
  ASSERT_NE(at, std::string::npos);
  EXPECT_GT(std::stod(text.substr(at + 31)), 1e6);
}

TEST_F(RoutesTest, EveryFamilyIsDescribedOnceAndBeforeItsSamples) {
  start();
  const std::string text = get("/metrics").body;
  std::set<std::string> families;
  std::string family;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("# HELP ")) {
      family = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(families.insert(family).second) << family;
    } else if (!line.starts_with("#")) {
      EXPECT_TRUE(line.starts_with(family)) << line;
      EXPECT_NO_THROW(std::stod(line.substr(line.rfind(' ')))) << line;
    }
  }
  EXPECT_GT(families.size(), 35u);
}

TEST_F(RoutesTest, AnUnknownRouteIs404) {
  start();
  for (const char* target : {"/", "/v1", "/v1/", "/v1/models/", "/v1//models", "/V1/models",
                             "/v1/models/../completions", "/health/", "/%68ealth", "/v1/embeddings"}) {
    EXPECT_EQ(get(target).status, 404) << target;
  }
}

TEST_F(RoutesTest, AWrongMethodIs405WithAllow) {
  start();
  const Reply reply = get("/v1/completions");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers.at("allow"), "POST");
  const Reply posted = post("/health", "{}");
  EXPECT_EQ(posted.status, 405);
  EXPECT_EQ(posted.headers.at("allow"), "GET, HEAD");
  EXPECT_EQ(Client(port()).request("OPTIONS", "/v1/chat/completions").status, 405);
  EXPECT_EQ(Client(port()).request("DELETE", "/v1/models").status, 405);
}

TEST_F(RoutesTest, NoAnswerAllowsOtherOrigins) {
  start();
  const Reply reply = get("/v1/models", "Origin: http://evil.example\r\n");
  for (const auto& [name, value] : reply.headers) EXPECT_FALSE(name.starts_with("access-control")) << name;
}

// ---- keys

const char* const kBadAuthorizations[] = {
    "",
    "Authorization: Bearer wrong\r\n",
    "Authorization: Bearer secret-on\r\n",
    "Authorization: Bearer secret-onee\r\n",
    "Authorization: Bearer SECRET-ONE\r\n",
    "Authorization: Bearer\r\n",
    "Authorization: Bearer \r\n",
    "Authorization: Basic secret-one\r\n",
    "Authorization: secret-one\r\n",
    "Authorization: Bearer  secret-one\r\n",
    "Authorization: Bearer secret-one secret-one\r\n",
    "Authorization: Bearer secret-one,\r\n",
    "Proxy-Authorization: Bearer secret-one\r\n",
    "X-Api-Key: secret-one\r\n",
    "Cookie: Authorization=secret-one\r\n",
};

TEST_F(RoutesTest, EveryRouteButHealthNeedsAKey) {
  start({.api_keys = {"secret-one", "secret-two"}});
  const std::string body = R"({"prompt":"x","max_tokens":1})";
  for (const char* target : {"/v1/models", "/v1/models/fake-model", "/metrics", "/nowhere",
                             "/v1/models?key=secret-one", "/health/", "//health", "/v1/completions"}) {
    const std::string only = get("/nowhere").body;
    for (const char* authorization : kBadAuthorizations) {
      const Reply reply = get(target, authorization);
      EXPECT_EQ(reply.status, 401) << target << " " << authorization;
      EXPECT_EQ(reply.headers.at("www-authenticate"), "Bearer");
      EXPECT_EQ(reply.body, only);
      EXPECT_EQ(reply.error("code"), "invalid_api_key");
    }
  }
  for (const char* target : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) {
    for (const char* authorization : kBadAuthorizations) {
      EXPECT_EQ(post(target, body, authorization).status, 401) << target << " " << authorization;
    }
  }
  EXPECT_TRUE(service_->submitted().empty());
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/v1/models", "Authorization: Bearer secret-one\r\n").status, 200);
  EXPECT_EQ(get("/v1/models", "authorization: bearer secret-two\r\n").status, 200);
  EXPECT_EQ(post("/v1/completions", body, "Authorization: Bearer secret-two\r\n").status, 200);
}

TEST_F(RoutesTest, EachKeyIsATenantAndNoTenantIsAKey) {
  start({.api_keys = {"secret-one", "secret-two"}});
  const std::string body = R"({"prompt":"x","max_tokens":1})";
  for (const char* key : {"secret-one", "secret-two", "secret-one"}) {
    ASSERT_EQ(post("/v1/completions", body, format("Authorization: Bearer {}\r\n", key)).status, 200);
  }
  const auto requests = service_->submitted();
  EXPECT_EQ(requests[0].tenant, requests[2].tenant);
  EXPECT_NE(requests[0].tenant, requests[1].tenant);
  EXPECT_EQ(requests[0].tenant.size(), 32u);
  EXPECT_EQ(requests[0].tenant.find("secret"), std::string::npos);
}

TEST(KeyRing, ComparesDigestsOfEqualLength) {
  const KeyRing ring({"a", "b"});
  const std::string right = "Bearer b", wrong = "Bearer c";
  EXPECT_TRUE(ring.tenant(&right).has_value());
  EXPECT_FALSE(ring.tenant(&wrong).has_value());
  EXPECT_FALSE(ring.tenant(nullptr).has_value());
  EXPECT_EQ(hex(sha256("abc").data(), 4), "ba7816bf");  // FIPS 180-2, appendix B.1
  EXPECT_EQ(hex(hmac_sha256("Jefe", "what do ya want for nothing?").data(), 4),
            "5bdcc146");  // RFC 4231, case 2
}

// The time to refuse must not tell how long a prefix of the key was right. Welch's t over many refusals, as
// timing tests of ciphers use it; a comparison that stops at the first difference shows t in the hundreds
// here.
TEST(KeyRing, TheTimeToRefuseDoesNotDependOnThePrefix) {
  const std::string key(4096, 'k');
  const KeyRing ring({key});
  const std::string near = "Bearer " + key.substr(1) + "x", far = "Bearer x" + key.substr(1);
  double sum[2] = {}, square[2] = {};
  constexpr int kRounds = 4000;
  for (int round = 0; round < 2 * kRounds; ++round) {
    const std::string& text = round % 2 == 0 ? near : far;
    const int64_t begin = system_clock().now_ns();
    ASSERT_FALSE(ring.tenant(&text).has_value());
    // Interrupts only add: cutting at 50 us keeps them out of the variance.
    const double took = std::min<double>(static_cast<double>(system_clock().now_ns() - begin), 50'000.0);
    sum[round % 2] += took;
    square[round % 2] += took * took;
  }
  const auto mean = [&](int i) { return sum[i] / kRounds; };
  const auto error = [&](int i) { return (square[i] / kRounds - mean(i) * mean(i)) / kRounds; };
  const double t = (mean(0) - mean(1)) / std::sqrt(error(0) + error(1) + 1e-9);
  EXPECT_TRUE(std::abs(t) < 10.0) << "t = " << t;
}

// ---- Host

TEST_F(RoutesTest, OnLoopbackHostMustNameLoopback) {
  start({.allowed_hosts = {"proxy.example"}});
  const auto status = [&](const std::string& host) {
    Client client(port());
    client.send("GET /health HTTP/1.1\r\nHost: " + host + "\r\n\r\n");
    return client.read().status;
  };
  for (const char* host : {"localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8080", "127.1.2.3", "[::1]",
                           "[::1]:8080", "proxy.example", "proxy.example:443"}) {
    EXPECT_EQ(status(host), 200) << host;
  }
  for (const char* host :
       {"evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.evil.example", "[::2]",
        "0.0.0.0", "192.168.0.1", "localhostx", "127", "proxy.example.org"}) {
    EXPECT_EQ(status(host), 403) << host;
  }
}

// ---- logs

TEST_F(RoutesTest, TheAccessLogHasNoKeyNoPromptAndNoControlCharacter) {
  std::mutex mutex;
  std::string lines;
  ServerOptions options{.api_keys = {"hidden-key"}};
  options.access_log = true;
  options.log = [&](LogLevel, std::string_view line) {
    const std::lock_guard lock(mutex);
    lines += std::string(line) + "\n";
  };
  start(options);
  ASSERT_EQ(post("/v1/completions", R"({"prompt":"hidden-prompt","user":"hidden-user"})",
                 "Authorization: Bearer hidden-key\r\n")
                .status,
            200);
  get("/%1b[31m-injected", "Authorization: Bearer hidden-nearly\r\n");
  Client(port()).request("G\x1b[31mET", "/health");
  stop();
  EXPECT_EQ(lines.find("hidden"), std::string::npos) << lines;
  EXPECT_EQ(lines.find('\x1b'), std::string::npos);
  EXPECT_NE(lines.find("target=\"/v1/completions\" status=200"), std::string::npos) << lines;
  EXPECT_NE(access_line({.method = "G\nET", .target = "/a\r\nb\x1b"}).find("\"/a\\r\\nb\\u001b\""),
            std::string::npos);
}

// ---- options

TEST(ServerOptions, ABindBeyondLoopbackNeedsAKeyOrALeave) {
  FakeService service;
  const auto refused = Server::create({.host = "0.0.0.0", .port = 0}, service);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().field(), "host");
  EXPECT_TRUE(Server::create({.host = "0.0.0.0", .port = 0, .api_keys = {"k"}}, service).ok());
  EXPECT_TRUE(Server::create({.host = "0.0.0.0", .port = 0, .allow_open_access = true}, service).ok());
}

TEST(ServerOptions, BadOnesAreNamed) {
  FakeService service;
  const auto field = [&](ServerOptions options) {
    return Server::create(std::move(options), service).status().field();
  };
  EXPECT_EQ(field({.port = -1}), "port");
  EXPECT_EQ(field({.port = 65536}), "port");
  EXPECT_EQ(field({.port = 0, .api_keys = {""}}), "api_key");
  EXPECT_EQ(field({.port = 0, .api_keys = {"a b"}}), "api_key");
  EXPECT_EQ(field({.port = 0, .workers = 0}), "workers");
  EXPECT_EQ(field({.host = "no.such.host.invalid", .port = 0}), "host");
}

TEST(ServerOptions, APortInUseIsAnError) {
  FakeService service;
  const auto first = Server::create({.port = 0}, service);
  ASSERT_TRUE(first.ok());
  const auto second = Server::create({.port = (*first)->port()}, service);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().field(), "port");
}

}  // namespace
}  // namespace tessera::server
