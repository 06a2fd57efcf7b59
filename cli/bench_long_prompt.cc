// The part of `tessera bench serving` that sends a long prompt into running streams.
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>

#include "bench.h"
#include "core/clock.h"
#include "core/format.h"

namespace tessera::cli {
namespace {

// One request as its client sees it.
struct Stream {
  std::mutex mutex;
  std::vector<int64_t> token_times;  // ns
  bool ended = false, failed = false;

  size_t tokens() {
    const std::lock_guard lock(mutex);
    return token_times.size();
  }
  // The largest time between tokens of which the later came in [from, until].
  double largest_gap(int64_t from, int64_t until) {
    const std::lock_guard lock(mutex);
    int64_t largest = 0;
    for (size_t i = 1; i < token_times.size(); ++i) {
      if (token_times[i] < from || token_times[i] > until) continue;
      largest = std::max(largest, token_times[i] - token_times[i - 1]);
    }
    return static_cast<double>(largest) * 1e-9;
  }
};

Result<std::shared_ptr<Stream>> send(engine::Service& service, const std::string& id,
                                     std::vector<int32_t> prompt, int tokens) {
  engine::Request request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = tokens;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  auto stream = std::make_shared<Stream>();
  TESSERA_RETURN_IF_ERROR(service.submit(std::move(request), [stream](std::vector<engine::Output>&& outputs) {
    const int64_t now = system_clock().now_ns();
    const std::lock_guard lock(stream->mutex);
    for (const engine::Output& output : outputs) {
      stream->token_times.insert(stream->token_times.end(), output.tokens.size(), now);
      stream->failed |= output.finish == engine::FinishReason::error;
      stream->ended |= output.last;
    }
  }));
  return stream;
}

// False when the stream ended first.
bool wait_for_tokens(Stream& stream, size_t count) {
  while (stream.tokens() < count) {
    {
      const std::lock_guard lock(stream.mutex);
      if (stream.ended) return stream.token_times.size() >= count;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

struct Round {
  double gap_before, gap_beside, chunk, first_token;
  bool streams_ran_on;
};

Result<Round> play_round(engine::Service& service, const LongPromptOptions& options, uint32_t round) {
  const int vocab = service.limits().vocab_size;
  const Status failed(StatusCode::internal, "a request of the benchmark failed");
  // The last chunk alone: all but its tokens are in the cache. It is the dearest, as it sees the most keys.
  const std::vector<int32_t> probe = random_tokens(options.prompt, 1000 * round + 1, vocab);
  const int chunk = std::min(options.chunk, options.prompt - 1);
  TESSERA_ASSIGN_OR_RETURN(
      const auto warm,
      send(service, format("warm-{}", round), std::vector<int32_t>(probe.begin(), probe.end() - chunk), 1));
  if (!wait_for_tokens(*warm, 1)) return failed;
  const int64_t probe_sent = system_clock().now_ns();
  TESSERA_ASSIGN_OR_RETURN(const auto last_chunk, send(service, format("chunk-{}", round), probe, 1));
  if (!wait_for_tokens(*last_chunk, 1)) return failed;
  Round figures{};
  figures.chunk = static_cast<double>(last_chunk->token_times[0] - probe_sent) * 1e-9;

  std::vector<std::shared_ptr<Stream>> streams;
  std::vector<std::string> ids;
  for (int i = 0; i < options.streams; ++i) {
    ids.push_back(format("stream-{}-{}", round, i));
    const uint32_t seed = 1000 * round + 10 + static_cast<uint32_t>(i);
    TESSERA_ASSIGN_OR_RETURN(auto stream, send(service, ids.back(), random_tokens(64, seed, vocab), 4000));
    streams.push_back(std::move(stream));
  }
  constexpr size_t kQuietTokens = 40;  // the streams alone, to compare with
  for (const auto& stream : streams) {
    if (!wait_for_tokens(*stream, 2)) return failed;
  }
  const int64_t alone = system_clock().now_ns();
  const size_t target = streams[0]->tokens() + kQuietTokens;
  if (!wait_for_tokens(*streams[0], target)) return failed;
  const int64_t sent = system_clock().now_ns();
  TESSERA_ASSIGN_OR_RETURN(
      const auto arrival,
      send(service, format("long-{}", round), random_tokens(options.prompt, 1000 * round + 2, vocab), 1));
  if (!wait_for_tokens(*arrival, 1)) return failed;
  const int64_t answered = arrival->token_times[0];
  figures.first_token = static_cast<double>(answered - sent) * 1e-9;
  figures.streams_ran_on = true;
  for (const auto& stream : streams) {
    figures.gap_before = std::max(figures.gap_before, stream->largest_gap(alone, sent));
    figures.gap_beside = std::max(figures.gap_beside, stream->largest_gap(sent, answered));
    const std::lock_guard lock(stream->mutex);
    figures.streams_ran_on &= !stream->ended;
  }
  for (const std::string& id : ids) service.cancel(id);
  for (const auto& stream : streams) {
    wait_for_tokens(*stream, SIZE_MAX);  // until it has ended
  }
  return figures;
}

}  // namespace

Status bench_long_prompt(const engine::ServiceOptions& service_options, LongPromptOptions options,
                         JsonLines& lines) {
  TESSERA_ASSIGN_OR_RETURN(auto service, load(service_options, LogLevel::warning));
  options.chunk = service_options.max_num_batched_tokens;
  std::vector<double> before, beside, chunk, first, added;
  bool ran_on = true;
  for (int round = 0; round < options.rounds; ++round) {
    TESSERA_ASSIGN_OR_RETURN(const Round one, play_round(*service, options, static_cast<uint32_t>(round)));
    before.push_back(one.gap_before);
    beside.push_back(one.gap_beside);
    chunk.push_back(one.chunk);
    first.push_back(one.first_token);
    added.push_back((one.gap_beside - one.gap_before) / one.chunk);
    ran_on &= one.streams_ran_on;
  }
  std::printf("a prompt of %d tokens beside %d streams, chunks of at most %d rows, medians of %d rounds\n",
              options.prompt, options.streams, options.chunk, options.rounds);
  std::printf(
      "  largest gap between tokens %.1f ms before, %.1f ms beside it; its last chunk alone %.1f ms: adds "
      "%.2f "
      "chunks\n",
      median(before) * 1e3, median(beside) * 1e3, median(chunk) * 1e3, median(added));
  std::printf("  its first token after %.0f ms, %s\n", median(first) * 1e3,
              ran_on ? "before any stream ended" : "after a stream had ended");
  lines.write({{"bench", "serving"},
               {"part", "long prompt"},
               {"prompt", options.prompt},
               {"streams", options.streams},
               {"chunk_rows", options.chunk},
               {"gap_before", median(before)},
               {"gap_beside", median(beside)},
               {"chunk_seconds", median(chunk)},
               {"chunks_added", median(added)},
               {"first_token", median(first)},
               {"before_any_stream_ended", ran_on}});
  return {};
}

}  // namespace tessera::cli
