#include "server/routes.h"

#include <algorithm>
#include <array>

#include "core/format.h"
#include "server/json_writer.h"

namespace tessera::server {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";

std::string fingerprint_of(const engine::ModelCard& card, const std::string& name) {
  const Digest digest =
      sha256(format("{}\n{}\n{}\n{}", name, card.architecture, card.vocab_size, card.max_model_len));
  return "fp_" + hex(digest.data(), 5);
}

// Bytes of the longest token. Tokens that no text holds (control tokens) only make the bound looser.
size_t longest_token(const engine::Service& service, int vocab_size) {
  size_t longest = 1;
  for (int32_t id = 0; id < vocab_size; ++id) longest = std::max(longest, service.token_bytes(id).size());
  return longest;
}

// host[:port] of a Host header without its port, brackets kept.
std::string_view host_name(std::string_view host) {
  const size_t colon = host.starts_with('[') ? host.find("]:") : host.find(':');
  if (colon == std::string_view::npos) return host;
  return host.substr(0, host.starts_with('[') ? colon + 1 : colon);
}

bool is_loopback_name(std::string_view name) {
  if (name == "localhost" || name == "[::1]") return true;
  // 127.0.0.0/8 in dotted form; a name such as 127.evil.example holds letters.
  return name.starts_with("127.") && name.find_first_not_of("0123456789.") == std::string_view::npos;
}

// Percent decoding; nothing when it is malformed or yields a control character.
std::optional<std::string> decoded(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = digit(text[i + 1]), low = digit(text[i + 2]);
    if (high < 0 || low < 0 || high * 16 + low < 0x20) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

const ApiError kBusy{.status = 429,
                     .type = "rate_limit_error",
                     .code = "queue_full",
                     .message = "too many requests are waiting to be read; try again after Retry-After"};

Fault object_of(const std::string& body, const JsonLimits& limits, boost::json::value* out) {
  TESSERA_RETURN_IF_FAULT(parse_json(body, limits, out));
  if (!out->is_object()) return invalid_type("body", "a JSON object", kind_name(*out));
  return std::nullopt;
}

// An answer that a worker makes. The client may be gone by then; there is nothing to cancel.
class Job final : public Exchange {
 public:
  explicit Job(std::shared_ptr<Responder> responder) : responder_(std::move(responder)) {}
  void finish(HttpResponse response) {
    if (const auto responder = std::move(responder_)) responder->respond(std::move(response));
  }
  void on_abort() override { responder_ = nullptr; }
  void on_writable() override {}
  void on_ping() override {}

 private:
  std::shared_ptr<Responder> responder_;
};

}  // namespace

Routes::Routes(const ServerOptions& options, engine::Service& service, std::shared_ptr<Mailbox> mailbox,
               bool loopback)
    : options_(options),
      service_(service),
      clock_(options.clock != nullptr ? *options.clock : system_clock()),
      loopback_(loopback),
      keys_(options.api_keys),
      id_prefix_(random_hex(6)),
      workers_(options.workers, static_cast<size_t>(options.limits.waiting_jobs)) {
  const std::string name = options.served_model_name.empty() ? service.card().id : options.served_model_name;
  shared_.service = &service;
  shared_.mailbox = std::move(mailbox);
  shared_.clock = &clock_;
  shared_.rules = {.limits = service.limits(), .model = name};
  shared_.json = {.depth = options.limits.json_depth, .values = options.limits.json_values};
  shared_.fingerprint = fingerprint_of(service.card(), name);
  shared_.longest_token_bytes = longest_token(service, shared_.rules.limits.vocab_size);
}

Routes::~Routes() = default;

Routes::Route Routes::route_of(std::string_view path) {
  static constexpr std::array<std::pair<std::string_view, Route>, 7> kRoutes = {{
      {"/health", Route::health},
      {"/metrics", Route::metrics},
      {"/v1/models", Route::models},
      {"/v1/completions", Route::completions},
      {"/v1/chat/completions", Route::chat},
      {"/tokenize", Route::tokenize},
      {"/detokenize", Route::detokenize},
  }};
  for (const auto& [name, route] : kRoutes) {
    if (path == name) return route;
  }
  return path.size() > kModelPrefix.size() && path.starts_with(kModelPrefix) ? Route::model : Route::none;
}

bool Routes::is_post(Route route) {
  return route == Route::completions || route == Route::chat || route == Route::tokenize ||
         route == Route::detokenize;
}

Fault Routes::check_host(const RequestHead& head) const {
  if (!loopback_ || head.host.empty()) return std::nullopt;
  const std::string_view name = host_name(head.host);
  if (is_loopback_name(name) || name == options_.host) return std::nullopt;
  const auto& allowed = options_.allowed_hosts;
  if (std::find(allowed.begin(), allowed.end(), name) != allowed.end()) return std::nullopt;
  return ApiError{
      .status = 403,
      .code = "host_not_allowed",
      .param = "Host",
      .message = format("Host: \"{}\" is not allowed on a loopback address; use localhost, or allow the "
                        "name at the server's start",
                        name.substr(0, 64))};
}

Fault Routes::check_body(const RequestHead& head) const {
  const std::string* type = head.find("content-type");
  std::string media = type != nullptr ? type->substr(0, type->find(';')) : std::string();
  while (!media.empty() && media.back() == ' ') media.pop_back();
  std::transform(media.begin(), media.end(), media.begin(), [](unsigned char c) { return std::tolower(c); });
  // Browsers may send other types across origins unasked; this one they must ask for.
  if (media != "application/json") {
    return ApiError{.status = 415,
                    .code = "unsupported_media_type",
                    .param = "Content-Type",
                    .message = "Content-Type: must be application/json; set the header"};
  }
  if (head.find("content-encoding") != nullptr) {
    return ApiError{.status = 415,
                    .code = "unsupported_media_type",
                    .param = "Content-Encoding",
                    .message = "Content-Encoding: coded bodies are not read; send plain JSON"};
  }
  if (!head.chunked && !head.content_length) {
    return ApiError{.status = 411,
                    .code = "length_required",
                    .param = "Content-Length",
                    .message = "Content-Length: missing; send it, or a chunked body"};
  }
  return std::nullopt;
}

std::optional<HttpResponse> Routes::admit(const RequestHead& head) {
  if (const Fault fault = check_host(head)) return error_response(*fault);
  const Route route = route_of(head.path);
  if (route != Route::health && !keys_.tenant(head.find("authorization"))) {
    return error_response({.status = 401,
                           .code = "invalid_api_key",
                           .message = "no valid API key; send the header Authorization: Bearer KEY"});
  }
  if (route == Route::none) {
    return error_response(
        {.status = 404, .code = "unknown_route", .message = "no such route; docs/server.md lists them"});
  }
  const bool right = is_post(route) ? head.method == "POST" : head.method == "GET" || head.method == "HEAD";
  if (!right) {
    const char* allow = is_post(route) ? "POST" : "GET, HEAD";
    HttpResponse response = error_response({.status = 405,
                                            .code = "method_not_allowed",
                                            .message = format("this route takes {}; use that", allow)});
    response.headers.emplace_back("Allow", allow);
    return response;
  }
  if (!head.query.empty()) {
    return error_response(invalid_value("query", "query: no route takes one; send the fields in the body"));
  }
  if (!is_post(route)) {
    if (head.has_body())
      return error_response(invalid_value("body", "body: this route takes none; send no body"));
    return std::nullopt;
  }
  if (draining_) {
    return error_response({.status = 503,
                           .type = "server_error",
                           .code = "shutting_down",
                           .message = "the server is shutting down; try again later"});
  }
  if (const Fault fault = check_body(head)) return error_response(*fault);
  return std::nullopt;
}

std::shared_ptr<Exchange> Routes::handle(std::shared_ptr<Responder> responder, const RequestHead& head,
                                         std::string body, const std::string& request_id) {
  const Route route = route_of(head.path);
  switch (route) {
    case Route::health:
      responder->respond(health());
      return nullptr;
    case Route::metrics:
      responder->respond(metrics());
      return nullptr;
    case Route::models:
      responder->respond(models());
      return nullptr;
    case Route::model:
      responder->respond(model(head.path));
      return nullptr;
    case Route::completions:
    case Route::chat: {
      const std::string tenant = keys_.tenant(head.find("authorization")).value_or("");
      auto generation =
          std::make_shared<Generation>(shared_, responder, route == Route::chat, tenant, request_id);
      const std::weak_ptr<Generation> weak = generation;
      generation->on_end([this, weak] { generations_.erase(weak.lock()); });
      if (!workers_.post([generation, body = std::move(body)] { generation->prepare(body); })) {
        responder->respond(error_response(kBusy));
        return nullptr;
      }
      generations_.insert(generation);
      return generation;
    }
    default:
      break;
  }
  auto job = std::make_shared<Job>(responder);
  const bool posted =
      workers_.post([this, job, body = std::move(body), tokenizes = route == Route::tokenize] {
        HttpResponse response;
        try {
          response = tokenizes ? tokenize(body) : detokenize(body);
        } catch (const std::exception& exception) {
          const std::string message = format("internal error: {}", exception.what());
          response = error_response(from_status(Status(StatusCode::internal, message)));
        }
        shared_.mailbox->post(
            [job, response = std::move(response)]() mutable { job->finish(std::move(response)); });
      });
  if (posted) return job;
  responder->respond(error_response(kBusy));
  return nullptr;
}

void Routes::shut_down() {
  const auto generations = generations_;
  for (const std::shared_ptr<Generation>& generation : generations) generation->shut_down();
}

HttpResponse Routes::refuse(const HttpRefusal& refusal) {
  const char* code = "malformed_http";
  if (refusal.status == 408) code = "request_timeout";
  if (refusal.status == 413 || refusal.status == 414 || refusal.status == 431) code = "too_large";
  return error_response(
      {.status = refusal.status, .code = code, .param = refusal.param, .message = refusal.message});
}

std::string Routes::next_request_id() {
  return format("{}{:010x}", id_prefix_, next_id_++);
}

std::string access_line(const AccessRecord& record) {
  std::string method, target;
  append_json_string(method, record.method.substr(0, 32));
  append_json_string(target, record.target.substr(0, 200));
  return format("http {} method={} target={} status={} bytes={} ms={:.1f}{}{}", record.request_id, method,
                target, record.status, record.sent_bytes, static_cast<double>(record.duration_ns) * 1e-6,
                *record.note != '\0' ? " note=" : "", record.note);
}

void Routes::record(const AccessRecord& record) {
  ++counters_.responses[record.note[0] != '\0' ? 0 : record.status];
  if (options_.log && options_.access_log) options_.log(LogLevel::info, access_line(record));
}

HttpResponse Routes::health() const {
  if (!draining_) return {.body = "{\"status\":\"ok\"}\n"};
  HttpResponse response{.status = 503, .body = "{\"status\":\"draining\"}\n"};
  response.headers.emplace_back("Retry-After", "1");
  return response;
}

std::string Routes::model_object() const {
  const engine::ModelCard& card = service_.card();
  std::string out = "{\"id\":";
  append_json_string(out, shared_.rules.model);
  out += format(",\"object\":\"model\",\"created\":{},\"owned_by\":\"tessera\",\"max_model_len\":{}}}",
                card.created, shared_.rules.limits.max_model_len);
  return out;
}

HttpResponse Routes::models() const {
  return {.body = "{\"object\":\"list\",\"data\":[" + model_object() + "]}\n"};
}

HttpResponse Routes::model(const std::string& path) const {
  const std::optional<std::string> name = decoded(std::string_view(path).substr(kModelPrefix.size()));
  if (name == shared_.rules.model) return {.body = model_object() + "\n"};
  return error_response(
      {.status = 404,
       .code = "model_not_found",
       .param = "model",
       .message = format("model: no such model; \"{}\" is served here", shared_.rules.model)});
}

HttpResponse Routes::metrics() const {
  HttpCounters counters = counters_;
  counters.generations = static_cast<int>(generations_.size());
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = metrics_text(service_.metrics(), counters, service_.card(), shared_.rules.model)};
}

HttpResponse Routes::tokenize(const std::string& body) const {
  boost::json::value value;
  if (const Fault fault = object_of(body, shared_.json, &value)) return error_response(*fault);
  TokenizeCall call;
  if (const Fault fault = parse_tokenize(value.get_object(), shared_.rules, &call))
    return error_response(*fault);
  const Result<engine::EncodedText> encoded =
      call.chat ? service_.render_chat(call.messages, call.add_generation_prompt)
                : service_.tokenize(call.text, call.add_special, call.parse_special);
  if (!encoded.ok()) {
    ApiError error = from_status(encoded.status());
    if (error.param.empty()) error.param = call.chat ? "messages" : "prompt";
    return error_response(error);
  }
  std::string out = "{\"tokens\":";
  append_json_ids(out, encoded->tokens);
  out += format(",\"count\":{},\"max_model_len\":{},\"left_out_bytes\":{}}}\n", encoded->tokens.size(),
                shared_.rules.limits.max_model_len, encoded->left_out);
  return {.body = std::move(out)};
}

HttpResponse Routes::detokenize(const std::string& body) const {
  boost::json::value value;
  if (const Fault fault = object_of(body, shared_.json, &value)) return error_response(*fault);
  std::vector<int32_t> tokens;
  if (const Fault fault = parse_detokenize(value.get_object(), shared_.rules, &tokens))
    return error_response(*fault);
  const Result<std::string> text = service_.detokenize(tokens);
  if (!text.ok()) {
    ApiError error = from_status(text.status());
    if (error.param.empty()) error.param = "tokens";
    return error_response(error);
  }
  // vLLM's name of the text, and llama-server's.
  std::string out = "{\"prompt\":";
  append_json_string(out, *text);
  out += ",\"content\":";
  append_json_string(out, *text);
  out += "}\n";
  return {.body = std::move(out)};
}

}  // namespace tessera::server
