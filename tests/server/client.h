// A raw HTTP client over one loopback socket, and a fixture that runs a server around a FakeService.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/server.h"
#include "tests/server/fake_service.h"

namespace tessera::server {

namespace json = boost::json;

inline std::string str(const json::value& value) {
  return std::string(std::string_view(value.as_string()));
}

struct Reply {
  int status = 0;                              // 0: the connection ended before a whole answer
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // without chunks
  bool chunked = false;

  json::value json() const { return json::parse(body); }
  // error.param and error.code of OpenAI's error form; "" for null.
  std::string error(const char* field) const {
    const json::value value = json();
    const json::value& found = value.at("error").at(field);
    return found.is_null() ? "" : str(found);
  }
};

class Client {
 public:
  Client() : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {}
  explicit Client(int port, int receive_buffer = 0) : Client() {
    if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    connect(port);
  }
  void connect(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    const int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  ~Client() { hang_up(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }

  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
  }
  void hang_up() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void reset() {  // RST instead of FIN
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    hang_up();
  }
  void half_close() { ::shutdown(fd_, SHUT_WR); }

  // Appends what comes within `ms` to buffer(); false at the end of the connection or in silence.
  bool receive(int ms = 10'000) {
    pollfd entry{fd_, POLLIN, 0};
    if (::poll(&entry, 1, ms) <= 0) return false;
    char bytes[16384];
    const ssize_t count = ::recv(fd_, bytes, sizeof bytes, 0);
    if (count <= 0) {
      ended_ = true;
      return false;
    }
    buffer_.append(bytes, static_cast<size_t>(count));
    return true;
  }
  bool receive_until(std::string_view text, int ms = 10'000) {
    while (buffer_.find(text) == std::string::npos) {
      if (!receive(ms)) return false;
    }
    return true;
  }
  // True when the server ends the connection within `ms`.
  bool wait_for_end(int ms = 10'000) {
    while (receive(ms)) {
    }
    return ended_;
  }
  const std::string& buffer() const { return buffer_; }

  // The next whole answer. `head_only`: of a HEAD request.
  Reply read(bool head_only = false) {
    Reply reply;
    if (!receive_until("\r\n\r\n")) return reply;
    const size_t end = buffer_.find("\r\n\r\n");
    const std::string head = buffer_.substr(0, end + 2);
    buffer_.erase(0, end + 4);
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t line_end = head.find("\r\n", at), colon = head.find(':', at);
      std::string name = head.substr(at, colon - at);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      reply.headers[name] = head.substr(colon + 2, line_end - colon - 2);
      at = line_end + 2;
    }
    reply.chunked = reply.headers.count("transfer-encoding") > 0;
    const bool whole = head_only || (reply.chunked ? read_chunks(&reply.body) : read_length(&reply));
    if (whole) reply.status = std::stoi(head.substr(9, 3));
    return reply;
  }

  Reply request(const std::string& method, const std::string& target, const std::string& body = "",
                const std::string& headers = "") {
    send(text_of(method, target, body, headers));
    return read(method == "HEAD");
  }
  static std::string text_of(const std::string& method, const std::string& target, const std::string& body,
                             const std::string& headers = "") {
    std::string text = method + " " + target + " HTTP/1.1\r\nHost: localhost\r\n" + headers;
    if (method == "POST") {
      text += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
    }
    return text + "\r\n" + body;
  }

 private:
  bool read_length(Reply* reply) {
    const size_t length = std::stoul(reply->headers["content-length"]);
    while (buffer_.size() < length) {
      if (!receive()) return false;
    }
    reply->body = buffer_.substr(0, length);
    buffer_.erase(0, length);
    return true;
  }
  bool read_chunks(std::string* body) {
    for (;;) {
      if (!receive_until("\r\n")) return false;
      const size_t line = buffer_.find("\r\n");
      const size_t size = std::stoul(buffer_.substr(0, line), nullptr, 16);
      while (buffer_.size() < line + 2 + size + 2) {
        if (!receive()) return false;
      }
      body->append(buffer_, line + 2, size);
      buffer_.erase(0, line + 2 + size + 2);
      if (size == 0) return true;
    }
  }

  int fd_ = -1;
  bool connected_ = false;
  bool ended_ = false;
  std::string buffer_;
};

// The JSON values of a stream's events; "[DONE]" becomes a string, comments are left out.
inline std::vector<json::value> events_of(const std::string& body) {
  std::vector<json::value> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos) {
      ADD_FAILURE() << "an event without an end: " << body.substr(at);
      break;
    }
    const std::string line = body.substr(at, end - at);
    at = end + 2;
    if (line.starts_with(":")) continue;
    EXPECT_TRUE(line.starts_with("data: ")) << line;
    const std::string data = line.substr(6);
    events.push_back(data == "[DONE]" ? json::value("[DONE]") : json::parse(data));
  }
  return events;
}

class ServerTest : public ::testing::Test {
 protected:
  ~ServerTest() override { stop(); }

  void start(ServerOptions options = {}, FakeService::Options service = {}) {
    service_ = std::make_unique<FakeService>(service);
    options.port = 0;
    auto made = Server::create(std::move(options), *service_);
    ASSERT_TRUE(made.ok()) << made.status().message();
    server_ = std::move(*made);
    thread_ = std::thread([this] { server_->run(); });
  }
  void stop() {
    if (!thread_.joinable()) return;
    server_->stop();
    thread_.join();
    server_.reset();
    service_.reset();
  }
  // Waits for run() to return by itself.
  void join() { thread_.join(); }

  int port() const { return server_->port(); }
  Reply get(const std::string& target, const std::string& headers = "") {
    return Client(port()).request("GET", target, "", headers);
  }
  Reply post(const std::string& target, const std::string& body, const std::string& headers = "") {
    return Client(port()).request("POST", target, body, headers);
  }

  std::unique_ptr<FakeService> service_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

}  // namespace tessera::server
