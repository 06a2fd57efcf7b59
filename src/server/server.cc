#include "server/server.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <exception>
#include <unordered_set>

#include "core/format.h"
#include "server/connection.h"
#include "server/routes.h"

namespace tessera::server {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr int kAcceptRetryMs = 100;               // after accept() failed, for want of descriptors or memory
constexpr int64_t kAcceptLogNs = 60'000'000'000;  // between two lines about it
constexpr int kLastWordsMs = 500;                 // after the drain deadline, for clients to take their error
constexpr size_t kReadBytes = 64 * 1024;

Status check_options(const ServerOptions& options) {
  if (options.port < 0 || options.port > 65535) {
    return invalid_argument(
        format("port: {} is not allowed: it must be from 0 to 65535; 0 takes any", options.port), "port");
  }
  if (options.workers < 1 || options.workers > 64) {
    return invalid_argument(format("workers: {} is not allowed: it must be from 1 to 64", options.workers),
                            "workers");
  }
  for (const std::string& key : options.api_keys) {
    const bool visible = std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7F; });
    if (key.empty() || !visible) {
      return invalid_argument(
          "api_key: must be at least one printable ASCII character, without spaces; change it", "api_key");
    }
  }
  return {};
}

}  // namespace

class Server::Impl {
 public:
  Impl(ServerOptions options, engine::Service& service) : options_(std::move(options)), service_(service) {}
  ~Impl() {
    mailbox_->close();
    close_all();
  }

  Status open() {
    TESSERA_RETURN_IF_ERROR(check_options(options_));
    ErrorCode error;
    asio::ip::address address = asio::ip::make_address(options_.host, error);
    if (error) {
      tcp::resolver resolver(io_);
      const auto found = resolver.resolve(options_.host, "", error);
      if (error || found.empty()) {
        return invalid_argument(format("host: \"{}\" is no address and does not resolve ({}); use 127.0.0.1",
                                       options_.host, error.message()),
                                "host");
      }
      address = found.begin()->endpoint().address();
    }
    if (!address.is_loopback() && options_.api_keys.empty() && !options_.allow_open_access) {
      return invalid_argument(
          format("host: {} can be reached from other machines, but no API key is set; set one, "
                 "or allow open access explicitly",
                 options_.host),
          "host");
    }
    const tcp::endpoint endpoint(address, static_cast<uint16_t>(options_.port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (!error) acceptor_.non_blocking(true, error);
    if (error) {
      return invalid_argument(format("port: cannot listen on {}:{} ({}); choose another", options_.host,
                                     options_.port, error.message()),
                              "port");
    }
    endpoint_ = acceptor_.local_endpoint();
    routes_ = std::make_unique<Routes>(options_, service_, mailbox_, address.is_loopback());
    host_.emplace(ConnectionHost{.io = io_,
                                 .application = *routes_,
                                 .limits = options_.limits,
                                 .clock = clock(),
                                 .scratch = std::string(kReadBytes, '\0'),
                                 .on_closed = [this](Connection* connection) { forget(connection); },
                                 .on_answered = [this] { check_drained(); }});
    accept();
    return {};
  }

  int port() const { return endpoint_.port(); }
  std::string address() const {
    const std::string name = endpoint_.address().to_string();
    return endpoint_.address().is_v6() ? format("http://[{}]:{}", name, port())
                                       : format("http://{}:{}", name, port());
  }

  void run() {
    while (!io_.stopped()) {
      try {
        io_.run();
      } catch (const std::exception& exception) {
        log(LogLevel::error, format("server: an event failed: {}", exception.what()));
      }
    }
    close_all();
  }

  void drain() {
    asio::post(io_, [this] { start_draining(); });
  }
  void stop() {
    asio::post(io_, [this] { finish(); });
  }

 private:
  Clock& clock() const { return options_.clock != nullptr ? *options_.clock : system_clock(); }
  void log(LogLevel level, const std::string& line) const {
    if (options_.log) options_.log(level, line);
  }

  void accept() {
    if (accepting_ || !acceptor_.is_open() || full()) return;
    accepting_ = true;
    acceptor_.async_accept([this](ErrorCode error, tcp::socket socket) {
      accepting_ = false;
      if (error == asio::error::operation_aborted) return;
      if (error) {
        retry_accept(error);
        return;
      }
      auto connection = std::make_shared<Connection>(std::move(socket), *host_);
      connections_.insert(connection);
      ++routes_->counters().connections_total;
      ++routes_->counters().connections;
      connection->start();
      accept();
    });
  }

  // Out of descriptors: what is connected goes on being served, who waits in the backlog waits longer.
  void retry_accept(const ErrorCode& error) {
    if (error == asio::error::connection_aborted) return accept();
    const int64_t now = clock().now_ns();
    if (now >= next_accept_log_ns_) {
      next_accept_log_ns_ = now + kAcceptLogNs;
      log(LogLevel::warning,
          format("server: cannot accept connections ({}); those that are open go on, others wait",
                 error.message()));
    }
    retry_.expires_after(std::chrono::milliseconds(kAcceptRetryMs));
    retry_.async_wait([this](ErrorCode cancelled) {
      if (!cancelled) accept();
    });
  }

  bool full() const { return connections_.size() >= static_cast<size_t>(options_.limits.connections); }

  void forget(Connection* connection) {
    connections_.erase(connection->shared_from_this());
    --routes_->counters().connections;
    if (!closing_) accept();
  }

  int busy() const {
    return static_cast<int>(std::count_if(connections_.begin(), connections_.end(),
                                          [](const auto& connection) { return connection->busy(); }));
  }

  void start_draining() {
    if (routes_->draining()) return;
    routes_->start_draining();
    log(LogLevel::info,
        format("server: draining, {} requests may run for {} s", busy(), options_.drain_ms / 1000));
    deadline_.expires_after(std::chrono::milliseconds(options_.drain_ms));
    deadline_.async_wait([this](ErrorCode cancelled) {
      if (cancelled) return;
      log(LogLevel::warning, format("server: {} requests are cut at the drain deadline", busy()));
      routes_->shut_down();
      deadline_.expires_after(std::chrono::milliseconds(kLastWordsMs));
      deadline_.async_wait([this](ErrorCode stopped) {
        if (!stopped) finish();
      });
    });
    check_drained();
  }

  void check_drained() {
    if (closing_ || !routes_->draining() || busy() > 0) return;
    asio::post(io_, [this] {
      if (busy() == 0) finish();
    });
  }

  void finish() {
    if (std::exchange(closing_, true)) return;
    ErrorCode ignored;
    acceptor_.close(ignored);
    close_all();
    io_.stop();
  }

  void close_all() {
    closing_ = true;
    const auto connections = connections_;
    for (const std::shared_ptr<Connection>& connection : connections) connection->close();
  }

  const ServerOptions options_;
  engine::Service& service_;
  asio::io_context io_{1};
  std::shared_ptr<Mailbox> mailbox_ =
      std::make_shared<Mailbox>([this] { asio::post(io_, [mailbox = mailbox_] { mailbox->deliver(); }); });
  tcp::acceptor acceptor_{io_};
  asio::steady_timer retry_{io_};
  asio::steady_timer deadline_{io_};
  tcp::endpoint endpoint_;
  std::unique_ptr<Routes> routes_;
  std::optional<ConnectionHost> host_;
  std::unordered_set<std::shared_ptr<Connection>> connections_;
  int64_t next_accept_log_ns_ = 0;
  bool accepting_ = false;
  bool closing_ = false;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::create(ServerOptions options, engine::Service& service) {
  auto impl = std::make_unique<Impl>(std::move(options), service);
  TESSERA_RETURN_IF_ERROR(impl->open());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

int Server::port() const {
  return impl_->port();
}
std::string Server::address() const {
  return impl_->address();
}
void Server::run() {
  impl_->run();
}
void Server::drain() {
  impl_->drain();
}
void Server::stop() {
  impl_->stop();
}

}  // namespace tessera::server
