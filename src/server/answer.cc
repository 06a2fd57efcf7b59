#include "server/answer.h"

#include <algorithm>

#include "core/format.h"
#include "core/utf8.h"
#include "server/json_writer.h"

namespace tessera::server {
namespace {

constexpr const char* kDone = "data: [DONE]\n\n";

// Code points that begin in `bytes`: offsets then count characters even where a token ends inside one.
int64_t code_points(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

// A token as the API prints it; a part of a code point in OpenAI's "bytes:\x.." form.
std::string token_text(const std::string& bytes) {
  if (is_utf8(bytes)) return bytes;
  std::string out = "bytes:";
  for (const char c : bytes) out += format("\\x{:02x}", static_cast<unsigned char>(c));
  return out;
}

void comma(std::string& list) {
  if (!list.empty()) list += ',';
}

// {"token":...,"logprob":...,"bytes":[...]  without the closing brace.
void append_chat_logprob(std::string& out, const engine::TokenLogprob& entry,
                         const engine::TextService& text) {
  const std::string bytes = text.token_bytes(entry.token);
  out += "{\"token\":";
  append_json_string(out, token_text(bytes));
  out += ",\"logprob\":";
  append_json_float(out, entry.logprob);
  out += ",\"bytes\":[";
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

}  // namespace

std::string error_events(const ApiError& error) {
  return "data: " + error_body(error) + "\n\n" + kDone;
}

Answer::Answer(const Call& call, AnswerIdentity identity, std::vector<std::vector<int32_t>> prompts,
               std::vector<std::string> echoes, const engine::TextService& text)
    : call_(call), text_(text), prompt_ids_(std::move(prompts)), echoes_(std::move(echoes)) {
  prompts_.resize(prompt_ids_.size());
  choices_.resize(prompt_ids_.size() * static_cast<size_t>(call.n));
  open_choices_ = static_cast<int>(choices_.size());
  const char* object = "text_completion";
  if (call.chat) object = call.stream ? "chat.completion.chunk" : "chat.completion";
  prefix_ = "{\"id\":";
  append_json_string(prefix_, identity.id);
  prefix_ += format(",\"object\":\"{}\",\"created\":{},\"model\":", object, identity.created);
  append_json_string(prefix_, identity.model);
  prefix_ += ",\"system_fingerprint\":";
  append_json_string(prefix_, identity.fingerprint);
}

void Answer::take(int prompt, const engine::Output& output, std::string* events) {
  const int index = prompt * call_.n + output.index;
  Choice& choice = choices_[index];
  if (choice.finish != engine::FinishReason::none) return;
  prompts_[prompt].prompt_tokens = std::max(prompts_[prompt].prompt_tokens, output.prompt_tokens);
  prompts_[prompt].cached_tokens = std::max(prompts_[prompt].cached_tokens, output.cached_tokens);
  choice.completion_tokens = call_.prompt_only ? 0 : output.completion_tokens;
  choice.seed = output.seed;
  if (!choice.begun) {
    choice.begun = true;
    if (!echoes_.empty()) {
      choice.text = echoes_[prompt];
      choice.text_offset = code_points(choice.text);
    }
    Logprobs echoed;
    if (output.prompt_logprobs != nullptr) collect_prompt(prompt, *output.prompt_logprobs, &echoed);
    if (call_.stream) {
      begin(index, echoed, events);
    } else {
      choice.logprobs = std::move(echoed);
    }
  }
  if (call_.prompt_only) {
    if (output.finish == engine::FinishReason::none) return;
    choice.finish = engine::FinishReason::length;
    --open_choices_;
    if (call_.stream) append_finish(index, events);
    return;
  }
  if (!call_.stream) {
    choice.text += output.text;
    choice.tokens.insert(choice.tokens.end(), output.tokens.begin(), output.tokens.end());
    collect(choice, output, &choice.logprobs);
  } else {
    Logprobs fresh;
    collect(choice, output, &fresh);
    const bool shows_tokens =
        !output.tokens.empty() && (call_.return_token_ids || call_.sampling.logprobs >= 0);
    if (!output.text.empty() || shows_tokens) append_delta(index, output.text, output, fresh, events);
  }
  if (output.finish == engine::FinishReason::none) return;
  choice.finish = output.finish;
  choice.stop_reason = output.stop_reason;
  --open_choices_;
  if (call_.stream) append_finish(index, events);
}

void Answer::collect(Choice& choice, const engine::Output& output, Logprobs* out) const {
  if (call_.sampling.logprobs < 0) return;
  for (const engine::TokenLogprobs& entry : output.logprobs) {
    if (call_.chat) {
      comma(out->content);
      append_chat_logprob(out->content, entry.chosen, text_);
      out->content += ",\"top_logprobs\":[";
      for (size_t i = 0; i < entry.top.size(); ++i) {
        if (i > 0) out->content += ',';
        append_chat_logprob(out->content, entry.top[i], text_);
        out->content += '}';
      }
      out->content += "]}";
      continue;
    }
    const int32_t token = entry.chosen.token;
    append_entry(token, &entry, choice.text_offset, out);
    choice.text_offset += code_points(text_.token_bytes(token));
  }
}

// One token in OpenAI's legacy form. `entry` is null for a prompt's first token, which nothing predicts.
void Answer::append_entry(int32_t token, const engine::TokenLogprobs* entry, int64_t offset,
                          Logprobs* out) const {
  for (std::string* list : {&out->tokens, &out->token_logprobs, &out->top_logprobs, &out->text_offset})
    comma(*list);
  append_json_string(out->tokens, token_text(text_.token_bytes(token)));
  append_json_int(out->text_offset, offset);
  if (entry == nullptr) {
    out->token_logprobs += "null";
    out->top_logprobs += "null";
    return;
  }
  append_json_float(out->token_logprobs, entry->chosen.logprob);
  // The chosen token is always listed, so a map may hold one more than was asked for.
  std::vector<engine::TokenLogprob> top = entry->top;
  const auto is_chosen = [&](const engine::TokenLogprob& other) { return other.token == token; };
  if (std::none_of(top.begin(), top.end(), is_chosen)) top.push_back(entry->chosen);
  std::vector<std::string> names;
  out->top_logprobs += '{';
  for (const engine::TokenLogprob& other : top) {
    std::string name = token_text(text_.token_bytes(other.token));
    // Two ids may print alike; the first, which is the likelier one, keeps the key.
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    if (!names.empty()) out->top_logprobs += ',';
    append_json_string(out->top_logprobs, name);
    out->top_logprobs += ':';
    append_json_float(out->top_logprobs, other.logprob);
    names.push_back(std::move(name));
  }
  out->top_logprobs += '}';
}

// entries[i] is of prompt token i + 1. Special tokens that the echoed text does not show take no room in it.
void Answer::collect_prompt(int prompt, const std::vector<engine::TokenLogprobs>& entries,
                            Logprobs* out) const {
  const std::vector<int32_t>& ids = prompt_ids_[static_cast<size_t>(prompt)];
  std::string_view rest = echoes_[static_cast<size_t>(prompt)];
  int64_t offset = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    append_entry(ids[i], i == 0 ? nullptr : &entries[i - 1], offset, out);
    const std::string bytes = text_.token_bytes(ids[i]);
    if (!rest.starts_with(bytes)) continue;
    offset += code_points(bytes);
    rest.remove_prefix(bytes.size());
  }
}

void Answer::append_logprobs(const Logprobs& logprobs, std::string* out) const {
  if (call_.sampling.logprobs < 0) {
    *out += ",\"logprobs\":null";
  } else if (call_.chat) {
    *out += ",\"logprobs\":{\"content\":[" + logprobs.content + "],\"refusal\":null}";
  } else {
    *out += ",\"logprobs\":{\"text_offset\":[" + logprobs.text_offset + "],\"token_logprobs\":[" +
            logprobs.token_logprobs + "],\"tokens\":[" + logprobs.tokens + "],\"top_logprobs\":[" +
            logprobs.top_logprobs + "]}";
  }
}

void Answer::open_chunk(int index, std::string* events) const {
  *events += "data: " + prefix_ + ",\"choices\":[{\"index\":";
  append_json_int(*events, index);
}

void Answer::close_chunk(std::string* events) const {
  *events += call_.include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n";
}

void Answer::begin(int index, const Logprobs& prompt_logprobs, std::string* events) {
  const size_t prompt = static_cast<size_t>(index / call_.n);
  if (call_.chat) {
    open_chunk(index, events);
    *events +=
        ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null";
    if (call_.return_token_ids) {
      *events += "}],\"prompt_token_ids\":";
      append_json_ids(*events, prompt_ids_[prompt]);
      *events += call_.include_usage ? ",\"usage\":null}\n\n" : "}\n\n";
      return;
    }
    close_chunk(events);
    return;
  }
  if (!call_.echo && !call_.return_token_ids) return;
  open_chunk(index, events);
  *events += ",\"text\":";
  append_json_string(*events, call_.echo ? echoes_[prompt] : std::string_view());
  if (call_.sampling.prompt_logprobs >= 0) {
    append_logprobs(prompt_logprobs, events);
  } else {
    *events += ",\"logprobs\":null";
  }
  *events += ",\"finish_reason\":null";
  if (call_.return_token_ids) {
    *events += ",\"prompt_token_ids\":";
    append_json_ids(*events, prompt_ids_[prompt]);
  }
  close_chunk(events);
}

void Answer::append_delta(int index, const std::string& text, const engine::Output& output,
                          const Logprobs& logprobs, std::string* events) const {
  open_chunk(index, events);
  *events += call_.chat ? ",\"delta\":{\"content\":" : ",\"text\":";
  append_json_string(*events, text);
  if (call_.chat) *events += '}';
  append_logprobs(logprobs, events);
  *events += ",\"finish_reason\":null";
  if (call_.return_token_ids) {
    *events += ",\"token_ids\":";
    append_json_ids(*events, output.tokens);
  }
  close_chunk(events);
}

// finish_reason, and what OpenAI's API lacks: stop_reason, as vLLM has it, and the seed.
void Answer::append_end_of(const Choice& choice, std::string* out) const {
  *out += format(",\"finish_reason\":\"{}\",\"seed\":{},\"stop_reason\":", engine::name(choice.finish),
                 choice.seed);
  if (choice.stop_reason.empty()) {
    *out += "null";
    return;
  }
  // A stop string prints as a string; a token's id as a number, as vLLM has it.
  const auto& stops = call_.sampling.stop;
  const bool is_string = std::find(stops.begin(), stops.end(), choice.stop_reason) != stops.end();
  const bool is_number = choice.stop_reason.find_first_not_of("0123456789") == std::string::npos;
  if (is_number && !is_string) {
    *out += choice.stop_reason;
  } else {
    append_json_string(*out, choice.stop_reason);
  }
}

void Answer::append_finish(int index, std::string* events) const {
  open_chunk(index, events);
  *events += call_.chat ? ",\"delta\":{}" : ",\"text\":\"\"";
  *events += ",\"logprobs\":null";
  append_end_of(choices_[index], events);
  close_chunk(events);
}

void Answer::append_usage(std::string* out) const {
  int64_t prompt = 0, cached = 0, completion = 0;
  for (const Prompt& entry : prompts_) {
    prompt += entry.prompt_tokens;
    cached += entry.cached_tokens;
  }
  for (const Choice& choice : choices_) completion += choice.completion_tokens;
  *out += format(
      "\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},"
      "\"prompt_tokens_details\":{{\"cached_tokens\":{}}}}}",
      prompt, completion, prompt + completion, cached);
}

void Answer::append_end(std::string* events) const {
  if (call_.include_usage) {
    *events += "data: " + prefix_ + ",\"choices\":[],";
    append_usage(events);
    *events += "}\n\n";
  }
  *events += kDone;
}

void Answer::append_choice(int index, std::string* out) const {
  const Choice& choice = choices_[index];
  *out += format("{{\"index\":{},", index);
  if (call_.chat) {
    *out += "\"message\":{\"role\":\"assistant\",\"content\":";
    append_json_string(*out, choice.text);
    *out += ",\"refusal\":null}";
  } else {
    *out += "\"text\":";
    append_json_string(*out, choice.text);
  }
  append_logprobs(choice.logprobs, out);
  append_end_of(choice, out);
  if (call_.return_token_ids) {
    *out += ",\"token_ids\":";
    append_json_ids(*out, choice.tokens);
    if (!call_.chat) {
      *out += ",\"prompt_token_ids\":";
      append_json_ids(*out, prompt_ids_[index / call_.n]);
    }
  }
  *out += '}';
}

std::string Answer::whole() const {
  std::string out = prefix_ + ",\"choices\":[";
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (i > 0) out += ',';
    append_choice(static_cast<int>(i), &out);
  }
  out += "],";
  if (call_.chat && call_.return_token_ids) {
    out += "\"prompt_token_ids\":";
    append_json_ids(out, prompt_ids_[0]);
    out += ',';
  }
  append_usage(&out);
  out += "}\n";
  return out;
}

}  // namespace tessera::server
