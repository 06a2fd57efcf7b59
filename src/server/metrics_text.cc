#include "server/metrics_text.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/format.h"

namespace tessera::server {
namespace {

using Histogram = engine::MetricsSnapshot::Histogram;

std::string escaped(const std::string& label) {
  std::string out;
  for (const char c : label) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

class Writer {
 public:
  template <typename T>
  void gauge(const char* name, const char* help, T value) {
    family(name, help, "gauge");
    line(name, "", value);
  }
  template <typename T>
  void counter(const char* name, const char* help, T value) {
    family(name, help, "counter");
    line(name, "", value);
  }
  void histogram(const char* name, const char* help, const Histogram& values) {
    family(name, help, "histogram");
    uint64_t below = 0;
    for (size_t i = 0; i < values.bounds.size(); ++i) {
      below += i < values.counts.size() ? values.counts[i] : 0;
      line(format("{}_bucket", name), format("{{le=\"{}\"}}", values.bounds[i]), below);
    }
    line(format("{}_bucket", name), "{le=\"+Inf\"}", values.count);
    line(format("{}_sum", name), "", values.sum);
    line(format("{}_count", name), "", values.count);
  }
  void family(const char* name, const char* help, const char* type) {
    fmt::format_to(std::back_inserter(text_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  template <typename T>
  void line(const std::string& name, const std::string& labels, T value) {
    fmt::format_to(std::back_inserter(text_), "{}{} {}\n", name, labels, value);
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

void write_engine_gauges(const engine::MetricsSnapshot& m, Writer& out) {
  out.gauge("tessera:num_requests_running", "Requests in the running batch.", m.requests_running);
  out.gauge("tessera:num_requests_waiting", "Requests in the queue.", m.requests_waiting);
  const double used = m.kv_blocks_total > 0
                          ? 1.0 - static_cast<double>(m.kv_blocks_free + m.kv_blocks_cached) /
                                      static_cast<double>(m.kv_blocks_total)
                          : 0.0;
  out.gauge("tessera:kv_cache_usage_perc", "Part of the KV blocks that running requests hold, 0 to 1.", used);
  out.family("tessera:kv_blocks", "KV blocks by state; the three add up to all.", "gauge");
  out.line("tessera:kv_blocks", "{state=\"free\"}", m.kv_blocks_free);
  out.line("tessera:kv_blocks", "{state=\"cached\"}", m.kv_blocks_cached);
  out.line("tessera:kv_blocks", "{state=\"referenced\"}", m.kv_blocks_referenced);
  out.gauge("tessera:kv_block_bytes", "Bytes of one KV block over all layers.", m.kv_block_bytes);
  out.gauge("tessera:kv_block_tokens", "Tokens of one KV block.", m.block_tokens);
}

void write_engine_counters(const engine::MetricsSnapshot& m, Writer& out) {
  out.counter("tessera:prompt_tokens_total", "Prompt tokens of all requests.", m.prompt_tokens);
  out.counter("tessera:prompt_tokens_computed_total", "Prompt tokens whose K/V were computed, not found.",
              m.prompt_tokens_computed);
  out.counter("tessera:generation_tokens_total", "Generated tokens.", m.generation_tokens);
  out.counter("tessera:prefix_cache_queries_total", "Tokens looked up in the prefix tree.",
              m.prefix_cache_queries);
  out.counter("tessera:prefix_cache_hits_total", "Tokens found in the prefix tree.", m.prefix_cache_hits);
  out.counter("tessera:num_preemptions_total", "Sequences taken out of the batch for lack of blocks.",
              m.preemptions);
  out.counter("tessera:engine_steps_total", "Steps of the engine.", m.steps);
  out.counter("tessera:evicted_blocks_total", "Cached KV blocks that were given up.", m.evicted_blocks);
  out.counter("tessera:left_out_bytes_total", "Bytes of texts that the vocabulary has no token for.",
              m.left_out_bytes);
  out.counter("tessera:nan_aborts_total", "Requests ended because a logit was not finite.", m.nan_aborts);
  out.counter("tessera:attention_blocks_read_total", "K/V blocks read by attention.",
              m.attention_blocks_read);
  out.counter("tessera:attention_shared_blocks_read_total", "Of those, read once for several sequences.",
              m.attention_shared_blocks_read);
  out.counter("tessera:attention_seconds_total", "Time inside attention.", m.attention_seconds);
  out.counter("tessera:step_seconds_total", "Time inside the model's steps.", m.step_seconds);
  out.family("tessera:request_success_total", "Finished requests by reason.", "counter");
  out.line("tessera:request_success_total", "{finished_reason=\"stop\"}", m.finished_stop);
  out.line("tessera:request_success_total", "{finished_reason=\"length\"}", m.finished_length);
  out.line("tessera:request_success_total", "{finished_reason=\"abort\"}", m.finished_abort);
  out.line("tessera:request_success_total", "{finished_reason=\"error\"}", m.finished_error);
  out.family("tessera:admission_rejections_total", "Requests refused because the queue was full.", "counter");
  out.line("tessera:admission_rejections_total", "{reason=\"queue_full\"}", m.rejected);
}

void write_engine_histograms(const engine::MetricsSnapshot& m, Writer& out) {
  out.histogram("tessera:time_to_first_token_seconds", "Arrival to first token.", m.time_to_first_token);
  out.histogram("tessera:inter_token_latency_seconds", "Between two tokens of a sample.",
                m.inter_token_latency);
  out.histogram("tessera:e2e_request_latency_seconds", "Arrival to last token.", m.e2e_latency);
  out.histogram("tessera:request_queue_time_seconds", "Arrival to the first step.", m.queue_time);
  out.histogram("tessera:request_prefill_time_seconds", "First step to first token.", m.prefill_time);
  out.histogram("tessera:request_decode_time_seconds", "First token to last token.", m.decode_time);
  out.histogram("tessera:iteration_tokens_total", "Rows of one step.", m.iteration_tokens);
  out.histogram("tessera:request_prompt_tokens", "Prompt tokens of a request.", m.request_prompt_tokens);
  out.histogram("tessera:request_generation_tokens", "Generated tokens of a request.",
                m.request_generation_tokens);
  out.histogram("tessera:request_params_n", "The n of a request.", m.request_params_n);
  out.histogram("tessera:request_params_max_tokens", "The max_tokens of a request.",
                m.request_params_max_tokens);
}

void write_http(const HttpCounters& http, Writer& out) {
  out.family("tessera:http_responses_total", "Answers by status; cut: the client went first.", "counter");
  for (const auto& [status, count] : http.responses) {
    const std::string code = status == 0 ? "cut" : format("{}", status);
    out.line("tessera:http_responses_total", format("{{code=\"{}\"}}", code), count);
  }
  out.counter("tessera:http_connections_total", "Accepted connections.", http.connections_total);
  out.gauge("tessera:http_connections", "Open connections.", http.connections);
  out.gauge("tessera:http_generations", "Requests for text that are not answered to the end.",
            http.generations);
}

void write_process(Writer& out) {
  long pages = 0, resident = 0;
  std::ifstream statm("/proc/self/statm");
  if (statm >> pages >> resident) {
    out.gauge("process_resident_memory_bytes", "Resident memory.", resident * sysconf(_SC_PAGESIZE));
    out.gauge("process_virtual_memory_bytes", "Virtual memory.", pages * sysconf(_SC_PAGESIZE));
  }
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * t.tv_usec; };
    out.counter("process_cpu_seconds_total", "User and system time.",
                seconds(usage.ru_utime) + seconds(usage.ru_stime));
  }
  std::error_code error;
  const std::filesystem::directory_iterator files("/proc/self/fd", error), end;
  if (!error) out.gauge("process_open_fds", "Open file descriptors.", std::distance(begin(files), end));
}

}  // namespace

std::string metrics_text(const engine::MetricsSnapshot& engine, const HttpCounters& http,
                         const engine::ModelCard& card, const std::string& served_name) {
  Writer out;
  out.family("tessera:model_info", "The model that is served.", "gauge");
  out.line("tessera:model_info",
           format("{{model_name=\"{}\",architecture=\"{}\",max_model_len=\"{}\"}}", escaped(served_name),
                  escaped(card.architecture), card.max_model_len),
           1);
  write_engine_gauges(engine, out);
  write_engine_counters(engine, out);
  write_engine_histograms(engine, out);
  write_http(http, out);
  write_process(out);
  return out.take();
}

}  // namespace tessera::server
