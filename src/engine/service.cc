// Puts model file, tokenizer, template, executor, runner and engine together.
#include "engine/service.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <optional>
#include <random>

#include "core/clock.h"
#include "core/format.h"
#include "core/thread_pool.h"
#include "engine/cpu_runner.h"
#include "engine/engine.h"
#include "model/cpu_executor.h"
#include "model/model_file.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace tessera::engine {
namespace {

tokenizer::VocabSpec vocab_spec(const model::VocabData& vocab) {
  tokenizer::VocabSpec spec;
  spec.model = vocab.kind;
  spec.pre = vocab.pre;
  spec.tokens.reserve(vocab.tokens->size());
  for (size_t i = 0; i < vocab.tokens->size(); ++i) spec.tokens.emplace_back((*vocab.tokens)[i]);
  spec.token_types = vocab.types;
  if (vocab.merges != nullptr) {
    spec.merges.reserve(vocab.merges->size());
    for (size_t i = 0; i < vocab.merges->size(); ++i) spec.merges.emplace_back((*vocab.merges)[i]);
  }
  spec.bos_id = vocab.bos;
  spec.eos_id = vocab.eos;
  spec.unk_id = vocab.unknown;
  spec.pad_id = vocab.padding;
  spec.add_bos = vocab.add_bos.value_or(false);
  spec.add_eos = vocab.add_eos.value_or(false);
  return spec;
}

// Tokenizer and template of one model; immutable after create().
class Text {
 public:
  static Result<Text> create(const model::ModelFile& file, const std::string& chosen_template) {
    Text text;
    TESSERA_ASSIGN_OR_RETURN(text.tokenizer_, tokenizer::Tokenizer::create(vocab_spec(file.vocab)));
    const std::string& source = chosen_template.empty() ? file.chat_template : chosen_template;
    if (!source.empty()) {
      const auto spelling = [&](int32_t id) {
        return id >= 0 ? text.tokenizer_->spec().tokens[static_cast<size_t>(id)] : std::string();
      };
      TESSERA_ASSIGN_OR_RETURN(
          text.template_,
          tokenizer::ChatTemplate::compile(source, spelling(file.vocab.bos), spelling(file.vocab.eos)));
    }
    return text;
  }

  const tokenizer::Tokenizer& tokenizer() const { return *tokenizer_; }

  EncodedText tokenize(std::string_view input, bool add_special, bool parse_special) const {
    EncodedText encoded;
    encoded.tokens = tokenizer_->encode(input, {.add_special = add_special, .parse_special = parse_special},
                                        &encoded.left_out);
    return encoded;
  }
  Result<EncodedText> render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const {
    if (!template_) {
      return unsupported(
          "the model has no chat template; give one with --chat-template, or use /v1/completions",
          "messages");
    }
    std::vector<tokenizer::TemplateMessage> plain;
    for (const ChatMessage& message : messages)
      plain.push_back({message.role, message.content, message.name});
    TESSERA_ASSIGN_OR_RETURN(const tokenizer::RenderedChat rendered,
                             template_->render(plain, {.add_generation_prompt = add_generation_prompt,
                                                       .now = system_clock().unix_seconds()}));
    EncodedText encoded;
    encoded.tokens = tokenizer::encode_chat(*tokenizer_, rendered, &encoded.left_out);
    return encoded;
  }

 private:
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
  std::optional<tokenizer::ChatTemplate> template_;
};

class PlainText final : public TextService {
 public:
  explicit PlainText(Text text) : text_(std::move(text)) {}
  Result<EncodedText> tokenize(std::string_view input, bool add_special, bool parse_special) const override {
    return text_.tokenize(input, add_special, parse_special);
  }
  Result<std::string> detokenize(const std::vector<int32_t>& tokens) const override {
    return text_.tokenizer().decode(tokens);
  }
  std::string token_bytes(int32_t token) const override { return text_.tokenizer().token_bytes(token); }
  Result<EncodedText> render_chat(const std::vector<ChatMessage>& messages,
                                  bool add_generation_prompt) const override {
    return text_.render(messages, add_generation_prompt);
  }

 private:
  Text text_;
};

class StreamingDecoder final : public TextDecoder {
 public:
  explicit StreamingDecoder(const tokenizer::Tokenizer& tokenizer) : stream_(tokenizer) {}
  std::string push(int32_t token) override { return stream_.push(token); }
  std::string finish() override { return stream_.finish(); }

 private:
  tokenizer::StreamDecoder stream_;
};

int64_t available_memory() {
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  int64_t kilobytes = 0;
  while (info >> key >> kilobytes) {
    if (key == "MemAvailable:") return kilobytes * 1024;
    std::getline(info, unit);
  }
  return int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

std::string file_stem(const std::string& path) {
  std::string name = path.substr(path.find_last_of('/') + 1);
  if (name.ends_with(".gguf")) name.resize(name.size() - 5);
  return name;
}

Status check_options(const ServiceOptions& options) {
  const auto at_least = [](const char* flag, int64_t value, int64_t least) {
    if (value >= least) return Status();
    return invalid_argument(format("{} is {}, the least is {}", flag, value, least), flag);
  };
  TESSERA_RETURN_IF_ERROR(at_least("--max-model-len", options.max_model_len, 0));
  TESSERA_RETURN_IF_ERROR(at_least("--threads", options.threads, 0));
  TESSERA_RETURN_IF_ERROR(at_least("--max-num-seqs", options.max_num_seqs, 1));
  TESSERA_RETURN_IF_ERROR(at_least("--max-num-batched-tokens", options.max_num_batched_tokens, 1));
  TESSERA_RETURN_IF_ERROR(at_least("--kv-cache-memory-bytes", options.kv_cache_memory_bytes, 0));
  TESSERA_RETURN_IF_ERROR(at_least("--max-num-queued-reqs", options.max_queued_requests, 1));
  if (options.threads > 1024)
    return invalid_argument(format("--threads is {}, the most is 1024", options.threads));
  if (options.max_num_seqs > 4096) {
    return invalid_argument(format("--max-num-seqs is {}, the most is 4096", options.max_num_seqs));
  }
  if (options.max_num_batched_tokens > 65536) {
    return invalid_argument(
        format("--max-num-batched-tokens is {}, the most is 65536", options.max_num_batched_tokens));
  }
  if (options.max_num_batched_tokens < options.max_num_seqs) {
    return invalid_argument(
        format("--max-num-batched-tokens is {}, at least --max-num-seqs ({}) is needed so that "
               "every running answer gets its token in each step",
               options.max_num_batched_tokens, options.max_num_seqs));
  }
  return {};
}

class LoadedService final : public Service {
 public:
  static Result<std::unique_ptr<Service>> load(const ServiceOptions& options,
                                               const std::function<void(double)>& progress) {
    TESSERA_RETURN_IF_ERROR(check_options(options));
    auto service = std::unique_ptr<LoadedService>(new LoadedService(options.log));
    TESSERA_ASSIGN_OR_RETURN(const model::ModelFile file, model::open_model(options.model_path));
    TESSERA_ASSIGN_OR_RETURN(Text text, Text::create(file, options.chat_template));
    service->text_ = std::make_unique<Text>(std::move(text));
    TESSERA_RETURN_IF_ERROR(service->create_executor(file, options, progress));
    TESSERA_RETURN_IF_ERROR(service->create_engine(file, options));
    return std::unique_ptr<Service>(std::move(service));
  }

  const ModelCard& card() const override { return card_; }
  Limits limits() const override { return limits_; }
  Result<EncodedText> tokenize(std::string_view input, bool add_special, bool parse_special) const override {
    EncodedText encoded = text_->tokenize(input, add_special, parse_special);
    report_left_out(encoded.left_out);
    return encoded;
  }
  Result<std::string> detokenize(const std::vector<int32_t>& tokens) const override {
    return text_->tokenizer().decode(tokens);
  }
  std::string token_bytes(int32_t token) const override { return text_->tokenizer().token_bytes(token); }
  Result<EncodedText> render_chat(const std::vector<ChatMessage>& messages,
                                  bool add_generation_prompt) const override {
    TESSERA_ASSIGN_OR_RETURN(EncodedText encoded, text_->render(messages, add_generation_prompt));
    report_left_out(encoded.left_out);
    return encoded;
  }
  Status submit(Request request, OutputSink sink) override {
    return engine_->submit(std::move(request), std::move(sink));
  }
  void cancel(const std::string& id) override { engine_->cancel(id); }
  MetricsSnapshot metrics() const override {
    MetricsSnapshot snapshot = engine_->metrics();
    snapshot.left_out_bytes = left_out_bytes_;
    return snapshot;
  }
  void drain(int deadline_ms) override { engine_->drain(deadline_ms); }

 private:
  explicit LoadedService(LogSink log) : log_(std::move(log)) {}

  void report_left_out(size_t left_out) const {
    if (left_out == 0) return;
    left_out_bytes_ += left_out;
    if (log_) log_(LogLevel::warning, left_out_message(left_out));
  }

  Status create_executor(const model::ModelFile& file, const ServiceOptions& options,
                         const std::function<void(double)>& progress) {
    const bool exact = options.compute == Compute::f32;
    const std::string kv_name =
        options.kv_cache_dtype == "auto" ? (exact ? "f32" : "bf16") : options.kv_cache_dtype;
    TESSERA_ASSIGN_OR_RETURN(const DType kv_dtype, parse_dtype(kv_name.c_str()));
    const int context = file.config.context_length;
    if (options.max_model_len > context) {
      return invalid_argument(format("--max-model-len is {}, the model was trained for {}; give at most that",
                                     options.max_model_len, context),
                              "--max-model-len");
    }
    const int length = options.max_model_len == 0 ? context : options.max_model_len;
    const int block_tokens = 64;
    const int64_t block_bytes = model::kv_block_bytes(file.config, kv_dtype);
    const int64_t blocks_per_sequence = (length + block_tokens - 1) / block_tokens + 1;
    int64_t blocks = 0;
    if (options.kv_cache_memory_bytes > 0) {
      blocks = options.kv_cache_memory_bytes / block_bytes;
    } else {
      // A quarter of what is free, and never more than every sequence at full length can use.
      const int64_t share = std::max<int64_t>(available_memory() / 4 / block_bytes, 1);
      blocks = std::min(share, blocks_per_sequence * options.max_num_seqs);
    }
    blocks = std::min<int64_t>(blocks, INT32_MAX / block_tokens);
    if (blocks < 2) {
      return invalid_argument(format("--kv-cache-memory-bytes is {}, two blocks of this model need {}",
                                     options.kv_cache_memory_bytes, 2 * block_bytes),
                              "--kv-cache-memory-bytes");
    }
    pool_ = std::make_unique<ThreadPool>(ThreadPoolOptions{.threads = options.threads, .pin = true});
    TESSERA_ASSIGN_OR_RETURN(
        executor_, model::create_cpu_executor(file,
                                              {.compute = exact ? ops::Compute::f32 : ops::Compute::quantized,
                                               .kv_dtype = kv_dtype,
                                               .max_positions = length,
                                               .num_blocks = static_cast<int>(blocks),
                                               .max_rows = options.max_num_batched_tokens,
                                               .two_phase = options.two_phase,
                                               .progress = progress},
                                              *pool_));
    if (options.log) {
      options.log(
          LogLevel::info,
          format("{}: {} layers, {} wide, context {}; {} threads; KV pool {} blocks of {} tokens, {:.1f} MB "
                 "in {} for {} tokens",
                 file_stem(options.model_path), file.config.stacks.front().layers,
                 file.config.stacks.front().width, length, pool_->size(), blocks, block_tokens,
                 static_cast<double>(blocks * block_bytes) / 1e6, kv_name, blocks * block_tokens));
    }
    limits_.vocab_size = file.config.vocab_size;
    limits_.max_model_len = length;
    card_ = {.id = options.alias.empty() ? file_stem(options.model_path) : options.alias,
             .path = options.model_path,
             .architecture = file.config.architecture,
             .vocab_size = file.config.vocab_size,
             .max_model_len = length,
             .created = system_clock().unix_seconds()};
    return {};
  }

  Status create_engine(const model::ModelFile& file, const ServiceOptions& options) {
    EngineOptions engine;
    engine.limits = limits_;
    for (const int32_t id : {file.vocab.eos, file.vocab.eot}) {
      if (id >= 0 && std::find(engine.eos_ids.begin(), engine.eos_ids.end(), id) == engine.eos_ids.end()) {
        engine.eos_ids.push_back(id);
      }
    }
    engine.num_blocks = executor_->num_blocks();
    engine.block_tokens = executor_->block_tokens();
    engine.block_bytes = executor_->block_bytes();
    engine.prefix_caching = options.prefix_caching;
    engine.kv_sharing = options.kv_sharing;
    engine.seed =
        options.seed != 0 ? options.seed : (uint64_t{std::random_device()()} << 32 | std::random_device()());
    engine.batching = options.batching;
    engine.max_num_seqs = options.max_num_seqs;
    engine.max_num_batched_tokens = options.max_num_batched_tokens;
    engine.max_queued_requests = options.max_queued_requests;
    engine.log = options.log;
    engine.make_decoder = [text = text_.get()] {
      return std::make_unique<StreamingDecoder>(text->tokenizer());
    };
    TESSERA_ASSIGN_OR_RETURN(runner_, create_cpu_runner(*executor_, *pool_, step_limits(engine)));
    TESSERA_ASSIGN_OR_RETURN(engine_, Engine::create(std::move(engine), runner_.get()));
    return {};
  }

  const LogSink log_;
  mutable std::atomic<uint64_t> left_out_bytes_{0};
  // In the order in which they depend on each other; the engine goes first.
  ModelCard card_;
  Limits limits_;
  std::unique_ptr<Text> text_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<model::Executor> executor_;
  std::unique_ptr<Runner> runner_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::string left_out_message(size_t left_out) {
  return format("a text lost {} of its bytes: the model's vocabulary has no token for them", left_out);
}

Result<std::unique_ptr<TextService>> load_text(const std::string& model_path) {
  TESSERA_ASSIGN_OR_RETURN(const model::ModelFile file, model::open_model(model_path));
  TESSERA_ASSIGN_OR_RETURN(Text text, Text::create(file, ""));
  return std::unique_ptr<TextService>(new PlainText(std::move(text)));
}

Result<std::unique_ptr<Service>> load_service(const ServiceOptions& options,
                                              const std::function<void(double)>& progress) {
  return LoadedService::load(options, progress);
}

}  // namespace tessera::engine
