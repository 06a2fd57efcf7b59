#include "server/generation.h"

#include <exception>

#include "core/format.h"

namespace tessera::server {
namespace {

// A congested stream may fall this many outputs behind (some 20 MB) before its deadline would end it.
constexpr size_t kMaxHeld = 64 * 1024;
constexpr size_t kPieceBytes = 64 * 1024;  // of events, between two looks at the congestion

const ApiError kShuttingDown{.status = 503,
                             .type = "server_error",
                             .code = "shutting_down",
                             .message = "the server is shutting down; try again later"};

}  // namespace

Generation::Generation(const Shared& shared, std::shared_ptr<Responder> responder, bool chat,
                       std::string tenant, std::string request_id)
    : shared_(shared),
      responder_(std::move(responder)),
      tenant_(std::move(tenant)),
      request_id_(std::move(request_id)) {
  call_.chat = chat;
}

std::string Generation::engine_id(size_t prompt) const {
  return prompts_.size() == 1 ? request_id_ : format("{}-{}", request_id_, prompt);
}

// ---- on a worker

void Generation::prepare(const std::string& body) {
  if (aborted_) return;
  Fault fault;
  try {
    fault = parse(body);
    if (!fault) fault = encode_prompts();
    if (!fault) fault = submit();
  } catch (const std::exception& exception) {
    cancel_all();
    fault = from_status(Status(StatusCode::internal, format("internal error: {}", exception.what())));
  }
  shared_.mailbox->post([self = shared_from_this(), fault = std::move(fault)] {
    if (fault) {
      self->fail(*fault);
    } else {
      self->start();
    }
  });
}

Fault Generation::parse(const std::string& body) {
  boost::json::value value;
  TESSERA_RETURN_IF_FAULT(parse_json(body, shared_.json, &value));
  if (!value.is_object()) return invalid_type("body", "a JSON object", kind_name(value));
  if (call_.chat) return parse_chat(value.get_object(), shared_.rules, &call_);
  return parse_completion(value.get_object(), shared_.rules, &call_);
}

Fault Generation::check_length(size_t prompt, const std::string& param) const {
  const size_t context = static_cast<size_t>(shared_.rules.limits.max_model_len);
  const size_t tokens = prompts_[prompt].size();
  if (tokens == 0) return invalid_value(param, format("{}: no tokens; send a longer one", param));
  if (tokens < context) return std::nullopt;
  ApiError error =
      invalid_value(param, format("{}: {} tokens leave no room in the context of {} tokens; send at most {}",
                                  param, tokens, context, context - 1));
  error.code = "context_length_exceeded";
  return error;
}

Fault Generation::encode_prompts() {
  if (call_.chat) {
    Result<engine::EncodedText> chat =
        shared_.service->render_chat(call_.messages, call_.add_generation_prompt);
    if (!chat.ok()) {
      ApiError error = from_status(chat.status());
      if (error.param.empty()) error.param = "messages";
      return error;
    }
    prompts_.push_back(std::move(chat->tokens));
    return check_length(0, "messages");
  }
  for (size_t i = 0; i < call_.prompts.size(); ++i) {
    const std::string param = call_.prompts.size() == 1 ? "prompt" : format("prompt[{}]", i);
    PromptInput& input = call_.prompts[i];
    if (std::string* text = std::get_if<std::string>(&input)) {
      const size_t least = text->size() / shared_.longest_token_bytes;
      const size_t context = static_cast<size_t>(shared_.rules.limits.max_model_len);
      if (least > context) {
        ApiError error = invalid_value(
            param,
            format("{}: {} bytes are at least {} tokens, more than the context of {} tokens; send less",
                   param, text->size(), least, context));
        error.code = "context_length_exceeded";
        return error;
      }
      Result<engine::EncodedText> encoded = shared_.service->tokenize(*text, true, false);
      if (!encoded.ok()) {
        ApiError error = from_status(encoded.status());
        if (error.param.empty()) error.param = param;
        return error;
      }
      prompts_.push_back(std::move(encoded->tokens));
      if (call_.echo) echoes_.push_back(std::move(*text));
    } else {
      prompts_.push_back(std::move(std::get<std::vector<int32_t>>(input)));
      if (call_.echo) {
        Result<std::string> text = shared_.service->detokenize(prompts_.back());
        if (!text.ok()) return from_status(text.status());
        echoes_.push_back(std::move(*text));
      }
    }
    TESSERA_RETURN_IF_FAULT(check_length(i, param));
  }
  call_.prompts.clear();
  return std::nullopt;
}

Fault Generation::submit() {
  for (size_t i = 0; i < prompts_.size(); ++i) {
    if (aborted_) break;
    engine::Request request{.id = engine_id(i),
                            .prompt = prompts_[i],
                            .sampling = call_.sampling,
                            .n = call_.n,
                            .tenant = tenant_,
                            .cache_salt = call_.cache_salt};
    // The mailbox outlives the server, so a sink that is called late finds it closed.
    auto sink = [self = shared_from_this(), mailbox = shared_.mailbox,
                 prompt = static_cast<int>(i)](std::vector<engine::Output>&& outputs) {
      mailbox->post(
          [self, prompt, outputs = std::move(outputs)]() mutable { self->hear(prompt, std::move(outputs)); });
    };
    const Status status = shared_.service->submit(std::move(request), std::move(sink));
    if (!status.ok()) {
      cancel_all();
      return from_status(status);
    }
  }
  submitted_ = true;
  if (aborted_) cancel_all();
  return std::nullopt;
}

void Generation::cancel_all() {
  for (size_t i = 0; i < prompts_.size(); ++i) shared_.service->cancel(engine_id(i));
}

// ---- on the io thread

void Generation::start() {
  started_ = true;
  if (!responder_) return;  // the client left; its requests are cancelled
  AnswerIdentity identity{.id = (call_.chat ? "chatcmpl-" : "cmpl-") + request_id_,
                          .model = shared_.rules.model,
                          .fingerprint = shared_.fingerprint,
                          .created = shared_.clock->unix_seconds()};
  answer_ = std::make_unique<Answer>(call_, std::move(identity), prompts_, echoes_, *shared_.service);
  write_held();
}

void Generation::hear(int prompt, std::vector<engine::Output>&& outputs) {
  if (!responder_) return;
  for (engine::Output& output : outputs) held_.emplace_back(prompt, std::move(output));
  if (started_) write_held();
}

void Generation::write_held() {
  while (!held_.empty()) {
    if (streaming_ && responder_->congested()) {
      if (held_.size() > kMaxHeld) responder_->cut();
      return;
    }
    std::string events;
    while (!held_.empty() && events.size() < kPieceBytes) {
      const auto [prompt, output] = std::move(held_.front());
      held_.pop_front();
      if (output.finish == engine::FinishReason::error) {
        cancel_all();
        publish(events);
        fail(from_status(output.error));
        return;
      }
      if (output.finish == engine::FinishReason::cancelled) {
        publish(events);
        fail(kShuttingDown);  // nobody else cancels a request whose client still listens
        return;
      }
      answer_->take(prompt, output, &events);
    }
    if (answer_->complete()) {
      complete(std::move(events));
      return;
    }
    publish(events);
  }
}

void Generation::publish(const std::string& events) {
  if (events.empty()) return;
  begin_stream();
  responder_->write_stream(events);
}

void Generation::complete(std::string events) {
  if (call_.stream) {
    answer_->append_end(&events);
    publish(events);
    responder_->end_stream();
  } else {
    responder_->respond({.body = answer_->whole()});
  }
  end();
}

void Generation::begin_stream() {
  if (std::exchange(streaming_, true)) return;
  responder_->begin_stream();
}

void Generation::fail(const ApiError& error) {
  if (!responder_) return;
  held_.clear();
  if (streaming_) {
    responder_->write_stream(error_events(error));
    responder_->end_stream();
  } else {
    responder_->respond(error_response(error));
  }
  end();
}

void Generation::end() {
  responder_ = nullptr;
  held_.clear();
  if (on_end_) std::exchange(on_end_, nullptr)();
}

void Generation::shut_down() {
  aborted_ = true;
  if (started_) cancel_all();
  fail(kShuttingDown);
}

void Generation::on_abort() {
  aborted_ = true;
  // Before submitted_ prompts_ belongs to the worker, which then sees aborted_. Waiting for start() instead
  // would leave the requests of a server that stops before its mailbox is emptied.
  if (submitted_) cancel_all();
  end();
}

void Generation::on_writable() {
  if (responder_ && started_) write_held();
}

void Generation::on_ping() {
  if (responder_ && started_ && call_.stream && !responder_->congested()) publish(": keep-alive\n\n");
}

}  // namespace tessera::server
