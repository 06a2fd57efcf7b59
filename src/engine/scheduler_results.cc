// Results of steps, ends of sequences, and checks. scheduler.cc has the planning.
#include <algorithm>
#include <climits>
#include <set>

#include "core/check.h"
#include "core/format.h"
#include "engine/scheduler.h"

namespace tessera::engine {

void Scheduler::publish(Sequence& sequence) {
  if (!cache_.caching() || sequence.verified <= sequence.published) return;
  const std::span<const int32_t> tokens(sequence.tokens);
  cache_.insert(sequence.request->key, tokens.first(static_cast<size_t>(sequence.verified)), sequence.table);
  sequence.published = sequence.verified;
}

// The sequence gives up its blocks.
void Scheduler::let_go(Sequence& sequence, Disposal disposal) {
  if (disposal == Disposal::keep) publish(sequence);
  const int published = sequence.published;
  sequence.table.release();
  sequence.scheduled = sequence.verified = sequence.published = 0;
  if (disposal == Disposal::forget) {
    const std::span<const int32_t> tokens(sequence.tokens);
    cache_.forget(sequence.request->key, tokens.first(static_cast<size_t>(published)));
  }
}

void Scheduler::settle(const Flight& flight, bool finite) {
  Sequence& sequence = *flight.sequence;
  const int prompt_rows = std::clamp(sequence.prompt_tokens() - flight.first_position, 0, flight.rows);
  counters_.prompt_rows += static_cast<uint64_t>(prompt_rows);
  counters_.step_rows += static_cast<uint64_t>(flight.rows - prompt_rows);
  if (sequence.state != SequenceState::running || !finite) return;
  sequence.verified = std::max(sequence.verified, flight.first_position + flight.rows);
  // Generated tokens are published at the end, or at a preemption; what is computed in chunks at once,
  // because others may wait for it.
  if (prompt_rows > 0 || flight.rows > 1) publish(sequence);
}

// A parallel sample gets its blocks: those of the first sample's prompt, which has just been published.
void Scheduler::settle_join(const Flight& flight) {
  const SequencePtr& sibling = flight.sequence;
  if (sibling->state != SequenceState::running) return;
  sibling->joining = false;
  const Sequence& primary = *flight.primary;
  if (primary.state == SequenceState::running) {
    const int prompt = primary.prompt_tokens();
    sibling->table = primary.table.fork(prompt, cache_.block_tokens());
    sibling->scheduled = sibling->verified = sibling->published = prompt;
  } else {
    sibling->state = SequenceState::waiting;
    waiting_.insert(running_.extract(sibling->order()));
  }
}

void Scheduler::complete(const StepResult& result, std::vector<TokenEvent>* events) {
  TESSERA_CHECK(!flights_.empty());
  const Step& step = flights_.front();  // stays in flight until nothing can throw any more
  int32_t samples = 0;
  for (const Flight& flight : step.flights) {
    samples = std::max({samples, flight.sample + 1, flight.first_score + flight.scores});
  }
  TESSERA_CHECK_MSG(result.samples.size() == static_cast<size_t>(samples),
                    "the runner answered another number of samples than it was asked for");
  for (const Flight& flight : step.flights) {
    const SampledToken* answer =
        flight.sample < 0 ? nullptr : &result.samples[static_cast<size_t>(flight.sample)];
    bool finite = answer == nullptr || !answer->nonfinite;
    std::vector<TokenLogprobs> scores;
    for (int i = flight.first_score; i < flight.first_score + flight.scores; ++i) {
      finite = finite && !result.samples[static_cast<size_t>(i)].nonfinite;
      scores.push_back(result.samples[static_cast<size_t>(i)].logprobs);
    }
    if (flight.rows > 0) settle(flight, finite);
    if (flight.primary != nullptr && finite) settle_join(flight);
    Sequence& sequence = *flight.sequence;
    if (flight.draw) --sequence.pending;
    if (sequence.state == SequenceState::finished) continue;
    if (finite && !flight.draw && scores.empty()) continue;
    TokenEvent event{.request = sequence.request->id, .sample = sequence.sample, .nonfinite = !finite};
    if (finite) {
      sequence.scored += flight.scores;
      event.prompt = std::move(scores);
    }
    if (finite && flight.draw) {
      TESSERA_CHECK_MSG(answer->token >= 0, "the runner drew no token from finite logits");
      sequence.tokens.push_back(answer->token);
      event.token = answer->token;
      event.logprobs = answer->logprobs;
    }
    events->push_back(std::move(event));
  }
  completed_ = step.number;
  flights_.pop_front();
}

std::vector<uint64_t> Scheduler::fail_in_flight() {
  std::set<uint64_t> requests;
  for (const Step& step : flights_) {
    for (const Flight& flight : step.flights) {
      requests.insert(flight.sequence->request->id);
      flight.sequence->pending = 0;
    }
  }
  flights_.clear();
  completed_ = last_step_;
  return {requests.begin(), requests.end()};
}

void Scheduler::finish(uint64_t request, int sample, Disposal disposal) {
  TESSERA_CHECK_MSG(plan_ == nullptr, "a sample cannot end while a plan is under construction");
  for (Queue* queue : {&running_, &waiting_}) {
    auto found = queue->extract({request, sample});
    if (found.empty()) continue;
    let_go(*found.mapped(), disposal);
    found.mapped()->state = SequenceState::finished;
    return;
  }
}

void Scheduler::finish_all(uint64_t request, Disposal disposal) {
  for (Queue* queue : {&running_, &waiting_}) {
    for (;;) {
      const auto found = queue->lower_bound({request, INT_MIN});
      if (found == queue->end() || found->first.request != request) break;
      finish(request, found->first.sample, disposal);
    }
  }
}

int Scheduler::running_requests() const {
  int count = 0;
  for (auto it = running_.begin(); it != running_.end();
       it = running_.upper_bound({it->first.request, INT_MAX})) {
    ++count;
  }
  return count;
}

int Scheduler::waiting_requests() const {
  int count = 0;
  for (auto it = waiting_.begin(); it != waiting_.end();
       it = waiting_.upper_bound({it->first.request, INT_MAX})) {
    const auto running = running_.lower_bound({it->first.request, INT_MIN});
    count += running == running_.end() || running->first.request != it->first.request;
  }
  return count;
}

Status Scheduler::check_invariants() const {
  const auto broken = [](const Sequence& sequence, const char* what) {
    return Status(StatusCode::internal,
                  format("request {}, sample {}: {}", sequence.request->id, sequence.sample, what));
  };
  TESSERA_RETURN_IF_ERROR(cache_.check_invariants());
  std::vector<int32_t> references(static_cast<size_t>(cache_.pool().total()), 0);
  for (const kvcache::BlockRef& pin : journal_.pins) {
    if (pin) ++references[static_cast<size_t>(pin.id())];
  }
  for (const Queue* queue : {&waiting_, &running_}) {
    const bool waits = queue == &waiting_;
    for (const auto& [order, entry] : *queue) {
      const Sequence& sequence = *entry;
      const SequenceState expected = waits ? SequenceState::waiting : SequenceState::running;
      if (sequence.order() != order || sequence.state != expected) return broken(sequence, "is misplaced");
      if ((waits || sequence.joining) && !sequence.table.empty()) {
        return broken(sequence, "holds blocks while it waits");
      }
      if (sequence.published > sequence.verified || sequence.verified > sequence.scheduled ||
          sequence.scheduled > sequence.table.capacity(cache_.block_tokens())) {
        return broken(sequence, "published <= verified <= scheduled <= capacity is broken");
      }
      if (sequence.pending < 0 || sequence.pending > in_flight() + (plan_ != nullptr ? 1 : 0)) {
        return broken(sequence, "waits for a token that nobody draws");
      }
      for (const kvcache::BlockRef& block : sequence.table.blocks()) {
        ++references[static_cast<size_t>(block.id())];
      }
    }
  }
  for (int32_t id = 0; id < cache_.pool().total(); ++id) {
    if (cache_.pool().references(id) != references[static_cast<size_t>(id)]) {
      return Status(StatusCode::internal,
                    format("block {}: {} references, but {} sequences hold it", id,
                           cache_.pool().references(id), references[static_cast<size_t>(id)]));
    }
  }
  return {};
}

}  // namespace tessera::engine
