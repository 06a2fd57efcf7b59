// Any bytes as one HTTP request: read whole and read byte by byte they are the same request, or neither is
// one.
#include <cstdlib>

#include "server/http.h"
#include "server/server.h"

namespace {

using namespace tessera::server;

void require(bool condition) {
  if (!condition) std::abort();
}

struct Outcome {
  int status = 0;  // of the refusal; 0: none
  bool complete = false;
  std::string target, body;
  size_t used = 0;
};

// Feeds `bytes` in steps of `step`, as a connection would.
Outcome read(std::string_view bytes, size_t step, const ServerLimits& limits) {
  Outcome outcome;
  RequestHead head;
  std::unique_ptr<BodyReader> body;
  std::string in;
  size_t scanned = 0, arrived = 0;
  while (arrived < bytes.size()) {
    const size_t count = std::min(step, bytes.size() - arrived);
    in.append(bytes, arrived, count);
    arrived += count;
    std::optional<HttpRefusal> refusal;
    size_t used = 0;
    if (!body) {
      size_t end = 0;
      refusal = find_head_end(in, limits, &scanned, &end);
      if (!refusal && end == 0) continue;
      if (!refusal) refusal = parse_head(std::string_view(in).substr(0, end), limits, &head);
      if (!refusal && head.has_body())
        body = BodyReader::create(std::string_view(in).substr(0, end), limits, &refusal);
      if (refusal) {
        outcome.status = refusal->status;
        return outcome;
      }
      require(head.path.size() + head.query.size() <= head.target.size() && head.target[0] == '/');
      outcome.target = head.target;
      outcome.used = end;
      in.erase(0, end);
      if (!body) {
        outcome.complete = true;
        return outcome;
      }
    }
    refusal = body->feed(in, &used);
    require(used <= in.size());
    in.erase(0, used);
    outcome.used += used;
    if (refusal) {
      outcome.status = refusal->status;
      return outcome;
    }
    require(body->body().size() <= limits.body_bytes);
    if (body->done()) {
      outcome.complete = true;
      outcome.body = body->body();
      return outcome;
    }
  }
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const ServerLimits limits{
      .head_bytes = 1024, .headers = 10, .target_bytes = 256, .body_bytes = 4096, .body_chunks = 20};
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const Outcome whole = read(bytes, std::max<size_t>(1, size), limits), slow = read(bytes, 1, limits);
  require(whole.status == 0 || (whole.status >= 400 && whole.status <= 505));
  require(whole.complete == slow.complete);
  // Of bytes that are no request one way may refuse what the other still waits on: up to four bytes of a
  // chunk's frame are kept for the next call.
  if (whole.complete) {
    require(whole.target == slow.target && whole.body == slow.body && whole.used == slow.used);
  }
  return 0;
}
