// Service: a loaded model with its tokenizer, template and engine; all that the server and the command line
// see.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/log.h"
#include "engine/request.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::engine {

enum class Batching { continuous, static_ };
enum class Compute { quantized, f32 };

struct ServiceOptions {
  // Behaviour.
  std::string model_path;
  std::string alias;  // "": the file's name without folder and .gguf
  Compute compute =
      Compute::quantized;  // f32: the exact arithmetic (dequantised weights, f32 activations and KV)
  std::string kv_cache_dtype = "auto";  // auto: bf16, or f32 with Compute::f32
  int max_model_len = 0;                // per request; 0: the model's own
  std::string chat_template;            // Jinja source that replaces the model's own; "": the model's
  bool prefix_caching = true;           // keep finished sequences' K/V in the tree and share across requests
  bool kv_sharing = true;               // false: no block is ever shared (each sequence its own copy)
  uint64_t seed = 0;                    // of requests that give none; 0: drawn from the system
  // Performance.
  int threads = 0;  // 0: one for each allowed CPU
  int max_num_seqs = 32;
  int max_num_batched_tokens = 256;   // rows of one step: all decodes, then prefill chunks
  int64_t kv_cache_memory_bytes = 0;  // 0: chosen from free memory, and said in the log
  bool two_phase = true;              // false: shared blocks are walked once per sequence, same bits
  Batching batching = Batching::continuous;
  int max_queued_requests = 1024;
  LogSink log;
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string name;  // optional
};

struct ModelCard {
  std::string id;  // the alias
  std::string path;
  std::string architecture;
  int vocab_size = 0;
  int max_model_len = 0;
  int64_t created = 0;  // unix seconds of loading
};

// All counters since the start; gauges as of now. Thread-safe to read (a copy).
struct MetricsSnapshot {
  // Gauges.
  int requests_running = 0, requests_waiting = 0;
  int64_t kv_blocks_total = 0, kv_blocks_free = 0, kv_blocks_cached = 0, kv_blocks_referenced = 0;
  int64_t kv_block_bytes = 0;
  int block_tokens = 0;
  // Counters.
  uint64_t prompt_tokens = 0, prompt_tokens_computed = 0, generation_tokens = 0;
  uint64_t prefix_cache_queries = 0, prefix_cache_hits = 0;  // in tokens
  uint64_t preemptions = 0, steps = 0, evicted_blocks = 0, nan_aborts = 0;
  uint64_t left_out_bytes = 0;                     // of texts, for want of a token in the vocabulary
  uint64_t attention_blocks_read = 0;              // K/V blocks, per layer and kv head group counted once
  uint64_t attention_shared_blocks_read = 0;       // of those, read once for several sequences
  double attention_seconds = 0, step_seconds = 0;  // time inside attention and inside whole model steps
  uint64_t finished_stop = 0, finished_length = 0, finished_abort = 0, finished_error = 0, rejected = 0;
  // Histograms: cumulative counts for `bounds`, then +Inf; the sum.
  struct Histogram {
    std::vector<double> bounds;
    std::vector<uint64_t> counts;  // [bounds.size() + 1], not cumulative
    double sum = 0;
    uint64_t count = 0;
  };
  Histogram time_to_first_token, inter_token_latency, e2e_latency, queue_time, prefill_time, decode_time;
  Histogram iteration_tokens, request_prompt_tokens, request_generation_tokens, request_params_n,
      request_params_max_tokens;
};

// Text as the model reads it.
struct EncodedText {
  std::vector<int32_t> tokens;
  size_t left_out = 0;  // bytes of the text that no token of the vocabulary spells; they are not in `tokens`
};

// The text side of a model: tokenizer and chat template. Thread-safe.
class TextService {
 public:
  virtual ~TextService() = default;

  // Text to ids. Special tokens in the text are plain text unless `parse_special`.
  virtual Result<EncodedText> tokenize(std::string_view text, bool add_special, bool parse_special) const = 0;
  virtual Result<std::string> detokenize(const std::vector<int32_t>& tokens) const = 0;
  // The bytes of one token, as the API's `bytes` field wants them (may be part of a code point).
  virtual std::string token_bytes(int32_t token) const = 0;
  // Renders the chat template and encodes it; only the template's own special tokens become special ids.
  virtual Result<EncodedText> render_chat(const std::vector<ChatMessage>& messages,
                                          bool add_generation_prompt) const = 0;
};

// What a user is told of text that did not reach the model whole.
std::string left_out_message(size_t left_out);

// Thread-safe: every function may be called from any thread. Text that loses bytes to the vocabulary is a
// warning in the log and counted in MetricsSnapshot::left_out_bytes.
class Service : public TextService {
 public:
  virtual const ModelCard& card() const = 0;
  virtual Limits limits() const = 0;

  // Validates and queues. The Status is invalid_argument (names the field), resource_exhausted (queue full)
  // or unavailable (draining). After ok the sink hears exactly one `last` output.
  virtual Status submit(Request request, OutputSink sink) = 0;
  // Frees its blocks within one step; the sink hears `cancelled`. Unknown ids are ignored.
  virtual void cancel(const std::string& id) = 0;

  virtual MetricsSnapshot metrics() const = 0;
  // Stops admission; returns when the running requests have ended or `deadline_ms` is over (they are then
  // cancelled).
  virtual void drain(int deadline_ms) = 0;
};

// Loads only the tokenizer and the template of a model file.
Result<std::unique_ptr<TextService>> load_text(const std::string& model_path);

// Loads the model; `progress` (may be empty) hears fractions in [0, 1].
Result<std::unique_ptr<Service>> load_service(const ServiceOptions& options,
                                              const std::function<void(double)>& progress = {});

}  // namespace tessera::engine
