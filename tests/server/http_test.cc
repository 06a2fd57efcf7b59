// The bytes of HTTP: what is refused, the limits, and connections that last.
#include "server/http.h"

#include "tests/server/client.h"

namespace tessera::server {
namespace {

using HttpTest = ServerTest;

const std::string kHost = "Host: localhost\r\n";
const std::string kJson = "Content-Type: application/json\r\n";
const std::string kBody = R"({"prompt":"x","max_tokens":1})";

struct Raw {
  std::string bytes;
  int status = 400;
};

std::string post_head(const std::string& headers) {
  return "POST /v1/completions HTTP/1.1\r\n" + kHost + kJson + headers + "\r\n";
}
std::string get_with(const std::string& headers) {
  return "GET /health HTTP/1.1\r\n" + headers + "\r\n";
}

std::vector<Raw> malformed() {
  const std::string length = "Content-Length: " + std::to_string(kBody.size()) + "\r\n";
  std::vector<Raw> rows = {
      // Request lines.
      {"GET  /health HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET /health  HTTP/1.1\r\n" + kHost + "\r\n"},
      {" GET /health HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET /health HTTP/1.1 \r\n" + kHost + "\r\n"},
      {"GET\t/health\tHTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET /health\r\n" + kHost + "\r\n"},
      {"GET\r\n\r\n"},
      {"\r\nGET /health HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET health HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET http://localhost/health HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET * HTTP/1.1\r\n" + kHost + "\r\n"},
      {"CONNECT localhost:80 HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET /health#x HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET /he\xC3\xA4lth HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET /health\x01 HTTP/1.1\r\n" + kHost + "\r\n"},
      {"G(T /health HTTP/1.1\r\n" + kHost + "\r\n"},
      {std::string(33, 'G') + " /health HTTP/1.1\r\n" + kHost + "\r\n"},
      {"GET /health http/1.1\r\n" + kHost + "\r\n"},
      {"GET /health HTTP/1.10\r\n" + kHost + "\r\n"},
      {"GET /health HTTP/11\r\n" + kHost + "\r\n"},
      {"GET /health HTTP/2.0\r\n" + kHost + "\r\n", 505},
      {"GET /health HTTP/1.2\r\n" + kHost + "\r\n", 505},
      {"GET /health HTTP/0.9\r\n" + kHost + "\r\n", 505},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
      {"\x16\x03\x01\x02\x01\x01\n\r\n\r\n"},
      // Lines.
      {"GET /health HTTP/1.1\n" + kHost + "\r\n"},
      {"GET /health HTTP/1.1\r\nHost: localhost\n\r\n"},
      {"GET /health HTTP/1.1\r\nHost: localhost\n\n"},
      {"GET /health HTTP/1.1\r\nHost: localhost\r\r\n\r\n"},
      {"GET /health HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n"},
      {std::string("GET /health HTTP/1.1\r\nHost: local\0host\r\n\r\n", 43)},
      {get_with(kHost + "X: y\r\n folded\r\n")},
      {get_with(kHost + "X: y\r\n\tfolded\r\n")},
      {get_with(" X: y\r\n" + kHost)},
      {get_with(kHost + "X : y\r\n")},
      {get_with(kHost + "X\t: y\r\n")},
      {get_with(kHost + ": y\r\n")},
      {get_with(kHost + "X\r\n")},
      {get_with(kHost + "X Y: z\r\n")},
      {get_with(kHost + "X[]: z\r\n")},
      {get_with(kHost + "X: a\x01z\r\n")},
      {get_with(kHost + "X: a\x7Fz\r\n")},
      // Host.
      {get_with("")},
      {get_with("Host:\r\n")},
      {get_with("Host: \r\n")},
      {get_with(kHost + kHost)},
      {get_with("Host: localhost\r\nhost: evil\r\n")},
      {get_with("Host: localhost evil\r\n")},
      {get_with("Host: localhost/evil\r\n")},
      {get_with("Host: user@localhost\r\n")},
      {get_with("Host: http://localhost\r\n")},
      {get_with("Host: " + std::string(300, 'a') + "\r\n")},
      // Lengths.
      {post_head("Content-Length: +30\r\n") + kBody},
      {post_head("Content-Length: -1\r\n") + kBody},
      {post_head("Content-Length: 0x1d\r\n") + kBody},
      {post_head("Content-Length: 1e2\r\n") + kBody},
      {post_head("Content-Length: 29.0\r\n") + kBody},
      {post_head("Content-Length: 29 29\r\n") + kBody},
      {post_head("Content-Length: 29, 29\r\n") + kBody},
      {post_head("Content-Length: 2_9\r\n") + kBody},
      {post_head("Content-Length:\r\n") + kBody},
      {post_head("Content-Length: abc\r\n") + kBody},
      {post_head(length + length) + kBody},
      {post_head(length + "Content-Length: 5\r\n") + kBody},
      {post_head(length + "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: chunked\r\n" + length) + "0\r\n\r\n"},
      {post_head(length + "Transfer-Encoding: identity\r\n") + kBody},
      {post_head("Content-Length: 99999999999999999999\r\n"), 413},
      {post_head("Content-Length: 18446744073709551617\r\n"), 413},
      {post_head("Content-Length: 16777217\r\n"), 413},
      // Codings.
      {post_head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: chunked, chunked\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: chunked, gzip\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: \"chunked\"\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: chunked;q=1\r\n") + "0\r\n\r\n"},
      {post_head("Transfer-Encoding: identity\r\n") + kBody},
      {post_head("Transfer-Encoding:\r\n") + kBody},
      {post_head("Transfer-Encoding: \x0b"
                 "chunked\r\n") +
       "0\r\n\r\n"},
      {"POST /v1/completions HTTP/1.0\r\n" + kHost + kJson + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
      {post_head("Expect: 200-ok\r\n" + length) + kBody, 417},
      {get_with(kHost + "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n")},
      {get_with(kHost + length) + kBody},
      {get_with(kHost + "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n"},
  };
  // Chunks.
  for (const char* chunks :
       {"-2\r\nab\r\n0\r\n\r\n", "+2\r\nab\r\n0\r\n\r\n", "0x2\r\nab\r\n0\r\n\r\n", " 2\r\nab\r\n0\r\n\r\n",
        "2\nab\r\n0\r\n\r\n", "2\r\nab0\r\n\r\n", "2\r\nabc\r\n0\r\n\r\n", "2\r\na\r\n0\r\n\r\n",
        "g\r\nab\r\n0\r\n\r\n", "\r\nab\r\n0\r\n\r\n", ";x\r\nab\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nab\r\n0\r\n\r\n", "10000000000000002\r\nab\r\n0\r\n\r\n",
        "2\r\nab\r\n0\r\nX: y\r\n\r\n", "2\r\nab\r\n0\r\nHost: evil\r\n\r\n",
        "2\r\nab\r\n0\r\nContent-Length: 5\r\n\r\n", "2\r\nab\r\n0\r\n X\r\n\r\n"}) {
    rows.push_back({post_head("Transfer-Encoding: chunked\r\n") + chunks});
  }
  rows.push_back({post_head("Transfer-Encoding: chunked\r\n") + "ffffffffffffffff\r\n", 413});
  rows.push_back({post_head("Transfer-Encoding: chunked\r\n") + "1000001\r\n", 413});
  rows.push_back({post_head("Transfer-Encoding: chunked\r\n") + "2;" + std::string(20'000, 'x')});
  return rows;
}

TEST_F(HttpTest, AmbiguousOrBrokenBytesGetOneRefusalAndTheEnd) {
  start({.limits = {.linger_ms = 50}});
  const std::string smuggled = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";
  size_t count = 0;
  for (const Raw& raw : malformed()) {
    Client client(port());
    client.send(raw.bytes + smuggled);
    ASSERT_TRUE(client.wait_for_end()) << raw.bytes.substr(0, 200);
    const std::string& answer = client.buffer();
    EXPECT_EQ(answer.substr(0, 12), "HTTP/1.1 " + std::to_string(raw.status))
        << raw.bytes.substr(0, 200) << answer;
    EXPECT_EQ(answer.find("\nHTTP/1.1"), std::string::npos)
        << "a second answer to " << raw.bytes.substr(0, 200);
    EXPECT_NE(answer.find("Connection: close"), std::string::npos);
    EXPECT_NE(answer.find("\"error\""), std::string::npos);
    ++count;
  }
  EXPECT_GE(count, 100u);
  EXPECT_TRUE(service_->submitted().empty());
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(HttpTest, AnyCutOfTheBytesGivesTheSameAnswer) {
  start();
  const std::string body = "7\r\n{\"promp\r\n16;ext=\"v\"\r\nt\":\"x\",\"max_tokens\":1}\r\n0\r\n\r\n";
  const std::string bytes = post_head("Transfer-Encoding: chunked\r\n") + body;
  std::string text;
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    Client client(port());
    client.send(bytes.substr(0, cut));
    // Seen apart by the server as often as not; both orders must do.
    if (cut % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    client.send(bytes.substr(cut));
    const Reply reply = client.read();
    ASSERT_EQ(reply.status, 200) << cut << reply.body;
    const std::string answer = str(reply.json().at("choices").at(0).at("text"));
    if (text.empty()) text = answer;
    EXPECT_EQ(answer, text);
  }
  Client slow(port());
  for (const char c : bytes) slow.send(std::string(1, c));
  EXPECT_EQ(slow.read().status, 200);
}

TEST_F(HttpTest, TheLastChunkMayComeInPieces) {
  start();
  Client client(port());
  client.send(post_head("Transfer-Encoding: chunked\r\n"));
  for (const char c : std::string("0\r\n\r\n")) {
    client.send(std::string(1, c));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(client.read().error("code"), "invalid_json");
}

TEST_F(HttpTest, ParseHeadTakesWhatItShould) {
  RequestHead head;
  const ServerLimits limits;
  const std::string text =
      "POST /a/b?c=d HTTP/1.1\r\nHost: LocalHost:80\r\nX-Empty:\r\nX-Spaces: \t a b \t\r\nX-High: "
      "\xC3\xA4\r\n"
      "Transfer-Encoding: Chunked\r\nConnection: foo, Close\r\nExpect: 100-Continue\r\n\r\n";
  ASSERT_FALSE(parse_head(text, limits, &head).has_value());
  EXPECT_EQ(head.path, "/a/b");
  EXPECT_EQ(head.query, "c=d");
  EXPECT_EQ(head.host, "localhost:80");
  EXPECT_EQ(*head.find("x-spaces"), "a b");
  EXPECT_EQ(*head.find("x-empty"), "");
  EXPECT_TRUE(head.chunked);
  EXPECT_FALSE(head.keep_alive);
  EXPECT_TRUE(head.expect_continue);
}

TEST_F(HttpTest, DatesAreWrittenAsRfc9110Shows) {
  // The RFC's own example, and days at which a calendar goes wrong.
  const auto date = [](int64_t seconds) {
    const std::string head = write_head({}, seconds, "", true, false, false);
    const size_t at = head.find("Date: ") + 6;
    return head.substr(at, head.find("\r\n", at) - at);
  };
  EXPECT_EQ(date(784111777), "Sun, 06 Nov 1994 08:49:37 GMT");
  EXPECT_EQ(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
  EXPECT_EQ(date(951782400), "Tue, 29 Feb 2000 00:00:00 GMT");
  EXPECT_EQ(date(1709251199), "Thu, 29 Feb 2024 23:59:59 GMT");
  EXPECT_EQ(date(4107542400), "Mon, 01 Mar 2100 00:00:00 GMT");
}

// ---- limits

TEST_F(HttpTest, ALongTargetIs414) {
  start();
  EXPECT_EQ(get("/" + std::string(8 * 1024, 'a')).status, 414);
  EXPECT_EQ(get("/" + std::string(8 * 1024 - 1, 'a')).status, 404);
  Client endless(port());
  endless.send("GET /" + std::string(64 * 1024, 'a'));
  EXPECT_EQ(endless.read().status, 414);
}

TEST_F(HttpTest, TooManyOrTooLongHeadersAre431) {
  start();
  std::string many;
  for (int i = 0; i < 99; ++i) many += "X: y\r\n";
  EXPECT_EQ(get("/health", many).status, 200);
  EXPECT_EQ(get("/health", many + "X: y\r\n").status, 431);
  EXPECT_EQ(get("/health", "X: " + std::string(30 * 1024, 'y') + "\r\n").status, 200);
  EXPECT_EQ(get("/health", "X: " + std::string(33 * 1024, 'y') + "\r\n").status, 431);
}

TEST_F(HttpTest, ABodyBeyondTheLimitIs413BeforeItIsRead) {
  start({.limits = {.body_bytes = 1000}});
  EXPECT_EQ(post("/v1/completions", std::string(1001, ' ')).status, 413);
  EXPECT_EQ(post("/v1/completions", std::string(1000, ' ')).status, 400);
  Client client(port());
  client.send(post_head("Content-Length: 1000000000\r\n"));
  EXPECT_EQ(client.read().status, 413);
  Client chunked(port());
  chunked.send(post_head("Transfer-Encoding: chunked\r\n"));
  for (int i = 0; i < 20; ++i) chunked.send("64\r\n" + std::string(100, ' ') + "\r\n");
  EXPECT_EQ(chunked.read().status, 413);
}

TEST_F(HttpTest, TooManyChunksAre413) {
  start({.limits = {.body_chunks = 100}});
  Client client(port());
  std::string chunks;
  for (int i = 0; i < 101; ++i) chunks += "1\r\n \r\n";
  client.send(post_head("Transfer-Encoding: chunked\r\n") + chunks);
  EXPECT_EQ(client.read().status, 413);
}

TEST_F(HttpTest, APostNeedsALengthAndJson) {
  start();
  const auto status = [&](const std::string& headers) {
    Client client(port());
    client.send("POST /v1/completions HTTP/1.1\r\n" + kHost + headers + "\r\n");
    return client.read().status;
  };
  EXPECT_EQ(status(kJson), 411);
  EXPECT_EQ(status("Content-Length: 0\r\n"), 415);
  EXPECT_EQ(status("Content-Type: text/plain\r\nContent-Length: 2\r\n"), 415);
  EXPECT_EQ(status("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n"), 415);
  EXPECT_EQ(status("Content-Type: application/jsonx\r\nContent-Length: 2\r\n"), 415);
  EXPECT_EQ(status(kJson + "Content-Encoding: gzip\r\nContent-Length: 2\r\n"), 415);
  Client client(port());
  client.send("POST /v1/completions HTTP/1.1\r\n" + kHost +
              "Content-Type: Application/JSON; charset=utf-8\r\n" +
              "Content-Length: " + std::to_string(kBody.size()) + "\r\n\r\n" + kBody);
  EXPECT_EQ(client.read().status, 200);
}

TEST_F(HttpTest, AQueryIsRefused) {
  start();
  const Reply reply = get("/v1/models?api_key=x");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.error("param"), "query");
}

TEST_F(HttpTest, ASlowHeadIs408) {
  start({.limits = {.head_ms = 100, .linger_ms = 50}});
  Client slow(port());
  const auto begin = std::chrono::steady_clock::now();
  for (const char c : std::string("GET /health HT")) {
    slow.send(std::string(1, c));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(slow.read().status, 408);
  EXPECT_TRUE(slow.wait_for_end());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  Client silent(port());
  EXPECT_TRUE(silent.wait_for_end());
  EXPECT_EQ(silent.buffer(), "");
}

TEST_F(HttpTest, ASlowBodyIs408) {
  start({.limits = {.body_grace_ms = 100, .body_bytes_per_s = 1000, .linger_ms = 50}});
  Client slow(port());
  slow.send(post_head("Content-Length: 1000\r\n"));
  for (int i = 0; i < 15; ++i) {
    slow.send(" ");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(slow.read().status, 408);
  EXPECT_TRUE(slow.wait_for_end());
}

TEST_F(HttpTest, ASlowBodyAtTheRateIsRead) {
  start({.limits = {.body_grace_ms = 1000, .body_bytes_per_s = 1000}});
  Client client(port());
  client.send(post_head("Content-Length: " + std::to_string(kBody.size() + 1500) + "\r\n"));
  for (int i = 0; i < 15; ++i) {
    client.send(std::string(100, ' '));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  client.send(kBody);
  EXPECT_EQ(client.read().status, 200);
}

TEST_F(HttpTest, AnIdleConnectionIsClosedAfterItsTime) {
  start({.limits = {.keep_alive_ms = 100}});
  Client client(port());
  EXPECT_EQ(client.request("GET", "/health").status, 200);
  EXPECT_TRUE(client.wait_for_end());
}

// ---- connections

TEST_F(HttpTest, OneConnectionServesManyRequests) {
  start();
  Client client(port());
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(client.request("GET", "/health").status, 200);
    ASSERT_EQ(client.request("POST", "/v1/completions", kBody).status, 200);
    ASSERT_EQ(client.request("POST", "/v1/completions", R"({"prompt":"x","stream":true})").status, 200);
  }
}

TEST_F(HttpTest, PipelinedRequestsAreAnsweredInOrder) {
  start();
  Client client(port());
  std::string bytes;
  for (int i = 0; i < 100; ++i) {
    bytes += Client::text_of("GET", "/health", "");
    bytes += Client::text_of("POST", "/v1/completions", format(R"({{"prompt":"x","max_tokens":{}}})", i + 1));
  }
  client.send(bytes);
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(client.read().json().at("status"), "ok");
    ASSERT_EQ(client.read().json().at("usage").at("completion_tokens"), i + 1);
  }
}

TEST_F(HttpTest, EndlessPipeliningIsCut) {
  start();
  service_->hold_after(0);
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", kBody));
  ASSERT_TRUE(service_->wait_until([](auto& service) { return service.running() == 1; }));
  client.send(std::string(200'000, 'x'));
  EXPECT_TRUE(client.wait_for_end());
  EXPECT_TRUE(service_->wait_until([](auto& service) { return service.running() == 0; }));
}

TEST_F(HttpTest, ConnectionCloseIsHonoured) {
  start();
  Client client(port());
  const Reply reply = client.request("GET", "/health", "", "Connection: close\r\n");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("connection"), "close");
  EXPECT_TRUE(client.wait_for_end());
}

TEST_F(HttpTest, Http10GetsNoChunks) {
  start();
  Client client(port());
  const std::string body = R"({"prompt":"x","max_tokens":2,"stream":true})";
  client.send("POST /v1/completions HTTP/1.0\r\n" + kJson + "Content-Length: " + std::to_string(body.size()) +
              "\r\n\r\n" + body);
  EXPECT_TRUE(client.wait_for_end());
  EXPECT_EQ(client.buffer().find("Transfer-Encoding"), std::string::npos);
  EXPECT_TRUE(client.buffer().ends_with("data: [DONE]\n\n"));
}

TEST_F(HttpTest, ExpectContinueIsAnswered) {
  start();
  Client client(port());
  client.send(post_head("Expect: 100-continue\r\nContent-Length: " + std::to_string(kBody.size()) + "\r\n"));
  ASSERT_TRUE(client.receive_until("HTTP/1.1 100 Continue\r\n\r\n"));
  EXPECT_EQ(client.buffer(), "HTTP/1.1 100 Continue\r\n\r\n");
  client.read(true);
  client.send(kBody);
  EXPECT_EQ(client.read().status, 200);
}

TEST_F(HttpTest, ARefusedHeadWithAManyByteBodyStillReadsItsAnswer) {
  start({.api_keys = {"key"}});
  Client client(port());
  client.send(Client::text_of("POST", "/v1/completions", std::string(4 << 20, ' ')));
  EXPECT_EQ(client.read().status, 401);
}

TEST_F(HttpTest, FarMoreConnectionsThanTheLimitAllGetTheirTurn) {
  start({.limits = {.connections = 4, .linger_ms = 20}});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send(Client::text_of("GET", "/health", "", "Connection: close\r\n"));
  }
  for (auto& client : clients) EXPECT_EQ(client->read().status, 200);
}

}  // namespace
}  // namespace tessera::server
