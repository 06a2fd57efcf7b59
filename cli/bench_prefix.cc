// tessera bench prefix: what sharing a prompt's prefix saves in memory, in time to the first token and in
// decode.
#include <atomic>
#include <cstdio>
#include <thread>

#include "bench.h"
#include "core/clock.h"
#include "core/format.h"

namespace tessera::cli {
namespace {

struct PrefixOptions {
  engine::ServiceOptions service;
  int requests = 32;
  int shared = 1024;
  int own = 64;
  int decode_sequences = 16;
  int decode_tokens = 40;
  int rounds = 3;
  std::string json;
};

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// A set of requests that run at once, with the fewest tokens that any of them has so far.
class Crowd {
 public:
  Crowd(engine::Service& service, std::string name) : service_(service), name_(std::move(name)) {}
  ~Crowd() { finish(); }

  Status add(std::vector<int32_t> prompt, int tokens) {
    engine::Request request;
    request.id = format("{}-{}", name_, members_.size());
    request.prompt = std::move(prompt);
    request.sampling.max_tokens = tokens;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    auto member = std::make_shared<Member>();
    member->id = request.id;
    member->sent = system_clock().now_ns();
    members_.push_back(member);
    const Status status =
        service_.submit(std::move(request), [member](std::vector<engine::Output>&& outputs) {
          for (const engine::Output& output : outputs) {
            if (!output.tokens.empty() && member->tokens.load() == 0) {
              member->first_token_seconds =
                  static_cast<double>(system_clock().now_ns() - member->sent) * 1e-9;
              member->cached = output.cached_tokens;
            }
            member->tokens += static_cast<int>(output.tokens.size());
            if (output.finish == engine::FinishReason::error) member->failed = true;
            if (output.last) member->done = true;
          }
        });
    if (!status.ok()) members_.pop_back();
    return status;
  }
  // Waits until each has at least `tokens` tokens or has ended.
  void wait_for(int tokens) const {
    for (const auto& member : members_) {
      while (member->tokens.load() < tokens && !member->done.load()) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    }
  }
  void finish() {
    for (const auto& member : members_) service_.cancel(member->id);
    for (const auto& member : members_) {
      while (!member->done.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  bool failed() const {
    return std::any_of(members_.begin(), members_.end(), [](const auto& m) { return m->failed.load(); });
  }
  double first_token_seconds(size_t i) const { return members_[i]->first_token_seconds; }
  int cached(size_t i) const { return members_[i]->cached; }

 private:
  struct Member {
    std::string id;
    int64_t sent = 0;
    std::atomic<int> tokens{0};
    std::atomic<bool> done{false}, failed{false};
    double first_token_seconds = 0;
    int cached = 0;
  };
  engine::Service& service_;
  std::string name_;
  std::vector<std::shared_ptr<Member>> members_;
};

struct DecodeFigures {
  std::vector<double> attention_ms, step_ms, blocks_per_step, shared_blocks_per_step;
};

// One round of decode: every sequence's prompt is in the cache before the clock starts.
Status decode_round(engine::Service& service, const PrefixOptions& options, bool share, uint32_t round,
                    DecodeFigures* figures) {
  const int vocab = service.limits().vocab_size;
  Crowd crowd(service, format("decode-{}", round));
  for (int i = 0; i < options.decode_sequences; ++i) {
    const uint32_t stream = 1000 * (round + 1) + static_cast<uint32_t>(i);
    std::vector<int32_t> prompt = random_tokens(options.shared, share ? 7 : 100000 + stream, vocab);
    TESSERA_RETURN_IF_ERROR(
        crowd.add(joined(std::move(prompt), random_tokens(options.own, stream, vocab)), 2048));
  }
  crowd.wait_for(2);
  const engine::MetricsSnapshot before = service.metrics();
  // Answers are far longer than the measured stretch, so all are still running at the second reading.
  crowd.wait_for(options.decode_tokens / 2);
  const engine::MetricsSnapshot after = service.metrics();
  crowd.finish();
  if (crowd.failed()) return Status(StatusCode::internal, "a request of the benchmark failed");
  const double steps = static_cast<double>(after.steps - before.steps);
  if (steps < 1) return Status(StatusCode::internal, "no decode step was seen; raise --decode-tokens");
  figures->attention_ms.push_back((after.attention_seconds - before.attention_seconds) / steps * 1e3);
  figures->step_ms.push_back((after.step_seconds - before.step_seconds) / steps * 1e3);
  figures->blocks_per_step.push_back(
      static_cast<double>(after.attention_blocks_read - before.attention_blocks_read) / steps);
  figures->shared_blocks_per_step.push_back(
      static_cast<double>(after.attention_shared_blocks_read - before.attention_shared_blocks_read) / steps);
  return {};
}

Status bench_memory(const PrefixOptions& options, JsonLines& lines) {
  TESSERA_ASSIGN_OR_RETURN(auto service, load(options.service, LogLevel::warning));
  const int vocab = service->limits().vocab_size;
  // Weights and pool are touched once before resident memory is compared.
  const std::vector<int32_t> shared = random_tokens(options.shared, 7, vocab);
  const int64_t resident_before = resident_bytes();
  Crowd miss(*service, "miss");
  TESSERA_RETURN_IF_ERROR(miss.add(joined(shared, random_tokens(options.own, 1, vocab)), 1));
  miss.wait_for(1);
  const double miss_seconds = miss.first_token_seconds(0);
  miss.finish();
  std::vector<double> hit_seconds;
  int cached = 0;
  for (uint32_t i = 0; i < 5; ++i) {
    Crowd hit(*service, format("hit{}", i));
    TESSERA_RETURN_IF_ERROR(hit.add(joined(shared, random_tokens(options.own, 20 + i, vocab)), 1));
    hit.wait_for(1);
    hit_seconds.push_back(hit.first_token_seconds(0));
    cached = hit.cached(0);
    hit.finish();
  }
  // A hit that only the last token of an equal prompt has to compute.
  std::vector<double> full_hit_seconds;
  for (uint32_t i = 0; i < 5; ++i) {
    Crowd hit(*service, format("full{}", i));
    TESSERA_RETURN_IF_ERROR(hit.add(joined(shared, random_tokens(options.own, 1, vocab)), 1));
    hit.wait_for(1);
    full_hit_seconds.push_back(hit.first_token_seconds(0));
    hit.finish();
  }

  Crowd crowd(*service, "memory");
  const engine::MetricsSnapshot start = service->metrics();
  int64_t unshared = 0;
  for (int i = 0; i < options.requests; ++i) {
    // Long answers, so that none has ended when the last has its first token.
    TESSERA_RETURN_IF_ERROR(
        crowd.add(joined(shared, random_tokens(options.own, 50 + static_cast<uint32_t>(i), vocab)), 4096));
    unshared += (options.shared + options.own + 1 + start.block_tokens - 1) / start.block_tokens;
  }
  crowd.wait_for(1);
  const engine::MetricsSnapshot held = service->metrics();
  const int64_t resident = resident_bytes() - resident_before;
  const int64_t pool_bytes = (held.kv_blocks_referenced + held.kv_blocks_cached) * held.kv_block_bytes;
  crowd.finish();
  if (crowd.failed()) return Status(StatusCode::internal, "a request of the benchmark failed");

  const double share = static_cast<double>(held.kv_blocks_referenced) / static_cast<double>(unshared);
  const double hit = median(hit_seconds), full_hit = median(full_hit_seconds);
  std::printf("%d requests of %d shared and %d own tokens\n", options.requests, options.shared, options.own);
  std::printf("  KV blocks in use       %lld of %lld unshared: %.1f %% (%.1f MB instead of %.1f MB)\n",
              static_cast<long long>(held.kv_blocks_referenced), static_cast<long long>(unshared),
              share * 100, static_cast<double>(held.kv_blocks_referenced * held.kv_block_bytes) / 1e6,
              static_cast<double>(unshared * held.kv_block_bytes) / 1e6);
  std::printf("  resident memory grew   %.1f MB; the pool's blocks, %lld cached ones included, are %.1f MB\n",
              static_cast<double>(resident) / 1e6, static_cast<long long>(held.kv_blocks_cached),
              static_cast<double>(pool_bytes) / 1e6);
  std::printf("  prompt tokens computed %llu of %d\n",
              static_cast<unsigned long long>(held.prompt_tokens_computed - start.prompt_tokens_computed),
              options.requests * (options.shared + options.own));
  std::printf(
      "  first token            miss %.1f ms; hit of %d tokens %.1f ms (%.3f of the miss); equal prompt %.1f "
      "ms "
      "(%.3f)\n",
      miss_seconds * 1e3, cached, hit * 1e3, hit / miss_seconds, full_hit * 1e3, full_hit / miss_seconds);
  lines.write({{"bench", "prefix"},
               {"part", "memory"},
               {"requests", options.requests},
               {"shared", options.shared},
               {"own", options.own},
               {"kv_blocks", held.kv_blocks_referenced},
               {"kv_blocks_unshared", unshared},
               {"share", share},
               {"kv_bytes", held.kv_blocks_referenced * held.kv_block_bytes},
               {"resident_growth_bytes", resident},
               {"pool_bytes", pool_bytes},
               {"prompt_tokens_computed", held.prompt_tokens_computed - start.prompt_tokens_computed},
               {"miss_seconds", miss_seconds},
               {"hit_seconds", hit},
               {"equal_prompt_seconds", full_hit}});
  return {};
}

Status bench_decode(const PrefixOptions& options, JsonLines& lines) {
  struct Mode {
    const char* name;
    bool kv_sharing, two_phase, share_prompt;
    std::unique_ptr<engine::Service> service;
    DecodeFigures figures;
  };
  Mode modes[] = {{"two-phase", true, true, true, nullptr, {}},
                  {"no-two-phase", true, false, true, nullptr, {}},
                  {"no-kv-sharing", false, true, true, nullptr, {}},
                  {"nothing shared, two-phase", true, true, false, nullptr, {}},
                  {"nothing shared, paged", true, false, false, nullptr, {}}};
  for (Mode& mode : modes) {
    engine::ServiceOptions service_options = options.service;
    service_options.kv_sharing = mode.kv_sharing;
    service_options.two_phase = mode.two_phase;
    TESSERA_ASSIGN_OR_RETURN(mode.service, load(service_options, LogLevel::warning));
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (Mode& mode : modes) {
      TESSERA_RETURN_IF_ERROR(decode_round(*mode.service, options, mode.share_prompt,
                                           static_cast<uint32_t>(round), &mode.figures));
    }
  }
  std::printf("decode, %d sequences of %d shared and %d own tokens, medians of %d rounds\n",
              options.decode_sequences, options.shared, options.own, options.rounds);
  std::printf("  %-26s %14s %10s %16s %14s\n", "mode", "attention ms", "step ms", "blocks a step",
              "shared of them");
  for (const Mode& mode : modes) {
    std::printf("  %-26s %14.2f %10.2f %16.0f %14.0f\n", mode.name, median(mode.figures.attention_ms),
                median(mode.figures.step_ms), median(mode.figures.blocks_per_step),
                median(mode.figures.shared_blocks_per_step));
    lines.write({{"bench", "prefix"},
                 {"part", "decode"},
                 {"mode", mode.name},
                 {"sequences", options.decode_sequences},
                 {"attention_ms", median(mode.figures.attention_ms)},
                 {"step_ms", median(mode.figures.step_ms)},
                 {"blocks_per_step", median(mode.figures.blocks_per_step)},
                 {"shared_blocks_per_step", median(mode.figures.shared_blocks_per_step)}});
  }
  // Ratios round by round, so that a machine whose speed drifts does not decide them.
  const auto ratio = [&](const Mode& slow, const Mode& fast, std::vector<double> DecodeFigures::*what) {
    std::vector<double> ratios;
    for (size_t i = 0; i < (slow.figures.*what).size(); ++i) {
      ratios.push_back((slow.figures.*what)[i] / (fast.figures.*what)[i]);
    }
    return median(ratios);
  };
  const std::pair<int, int> pairs[] = {{2, 0}, {1, 0}, {4, 3}};
  for (const auto& [slow, fast] : pairs) {
    const double attention = ratio(modes[slow], modes[fast], &DecodeFigures::attention_ms);
    const double step = ratio(modes[slow], modes[fast], &DecodeFigures::step_ms);
    std::printf("  %s / %s: attention %.2fx, whole step %.2fx\n", modes[slow].name, modes[fast].name,
                attention, step);
    lines.write({{"bench", "prefix"},
                 {"part", "ratio"},
                 {"slow", modes[slow].name},
                 {"fast", modes[fast].name},
                 {"attention", attention},
                 {"step", step}});
  }
  return {};
}

int bench_prefix(PrefixOptions options) {
  auto lines = JsonLines::open(options.json);
  if (!lines.ok()) return fail(lines.status());
  options.service.max_num_seqs =
      std::max({options.service.max_num_seqs, options.requests, options.decode_sequences});
  Status status = bench_memory(options, *lines);
  if (status.ok()) status = bench_decode(options, *lines);
  return status.ok() ? kExitOk : fail(status);
}

}  // namespace

void add_bench_prefix(CLI::App& bench, int* code) {
  auto options = std::make_shared<PrefixOptions>();
  CLI::App* sub = bench.add_subcommand("prefix", "what sharing a prefix saves: memory, first token, decode");
  add_service_flags(*sub, options->service);
  sub->add_option("--requests", options->requests, "requests of the memory part")->capture_default_str();
  sub->add_option("--shared", options->shared, "tokens that all prompts share")->capture_default_str();
  sub->add_option("--own", options->own, "prompt tokens of their own")->capture_default_str();
  sub->add_option("--decode-sequences", options->decode_sequences, "sequences of the decode part")
      ->capture_default_str();
  sub->add_option("--decode-tokens", options->decode_tokens, "tokens each of them decodes")
      ->capture_default_str();
  sub->add_option("-r,--rounds", options->rounds, "alternated rounds of the decode part")
      ->capture_default_str();
  sub->add_option("--json", options->json, "file for one JSON object a line");
  sub->callback([options, code] { *code = bench_prefix(*options); });
}

}  // namespace tessera::cli
