// Planning. scheduler_results.cc has the other half: results, ends and checks.
#include "engine/scheduler.h"

#include <algorithm>
#include <climits>

#include "core/check.h"
#include "core/format.h"
#include "engine/sampler.h"

namespace tessera::engine {
namespace {

using kvcache::BlockRef;

int64_t common_prefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const size_t limit = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(limit), b.begin()).first -
         a.begin();
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options), cache_(options.cache) {
  TESSERA_CHECK_MSG(options.max_num_batched_tokens >= options.max_num_seqs,
                    "a step must have room for one row of each sequence");
  TESSERA_CHECK_MSG(static_cast<int64_t>(options.cache.num_blocks) * options.cache.block_tokens <= INT32_MAX,
                    "slots are 32-bit");
}

Status check_fits(const kvcache::KvCacheOptions& cache, int prompt_tokens, int max_tokens) {
  // The K/V of the last token are never needed.
  const int64_t positions = static_cast<int64_t>(prompt_tokens) + max_tokens - 1;
  const int64_t need = (positions + cache.block_tokens - 1) / cache.block_tokens;
  if (need <= cache.num_blocks) return {};
  return invalid_argument(
      format(
          "max_tokens: {} prompt tokens and {} generated ones need {} KV blocks, but the cache has {}; lower "
          "max_tokens or give the server more KV memory",
          prompt_tokens, max_tokens, need, cache.num_blocks),
      "max_tokens");
}

void Scheduler::add(ScheduledRequest request) {
  TESSERA_CHECK(request.sampling.prompt_logprobs < 0 || options_.max_scored_rows > 0);
  const auto shared = std::make_shared<const ScheduledRequest>(std::move(request));
  for (int sample = 0; sample < shared->n; ++sample) {
    auto sequence = std::make_shared<Sequence>();
    sequence->request = shared;
    sequence->sample = sample;
    sequence->tokens = shared->prompt;
    waiting_.emplace(sequence->order(), std::move(sequence));
  }
}

bool Scheduler::plan(StepPlan* plan) {
  TESSERA_CHECK(plan_ == nullptr && in_flight() <= options_.lag);
  plan_ = plan;
  plan_->clear();
  plan_->step = last_step_ + 1;
  step_ = Step{plan_->step, {}};
  admissions_.clear();
  budget_ = options_.max_num_batched_tokens;
  scores_left_ = options_.max_scored_rows;
  preempted_in_plan_ = false;
  plan_decodes();
  plan_prefills();
  // What was just pushed out must not come back in the same step.
  if (!preempted_in_plan_) plan_admissions();
  if (plan_->rows > 0) return true;
  roll_back();
  return false;
}

void Scheduler::submitted() {
  TESSERA_CHECK(plan_ != nullptr);
  flights_.push_back(std::move(step_));
  last_step_ = plan_->step;
  journal_ = {};
  plan_ = nullptr;
}

void Scheduler::undo_to(size_t mark) {
  while (journal_.undo.size() > mark) {
    journal_.undo.back()();
    journal_.undo.pop_back();
  }
}

void Scheduler::roll_back() {
  if (plan_ == nullptr) return;
  undo_to(0);
  journal_ = {};
  step_ = {};
  admissions_.clear();
  plan_->clear();
  plan_ = nullptr;
}

std::vector<uint64_t> Scheduler::planned_requests() const {
  std::vector<uint64_t> requests;
  for (const Flight& flight : step_.flights) requests.push_back(flight.sequence->request->id);
  std::sort(requests.begin(), requests.end());
  requests.erase(std::unique(requests.begin(), requests.end()), requests.end());
  return requests;
}

void Scheduler::plan_decodes() {
  std::vector<SequencePtr> sequences;
  for (const auto& [order, sequence] : running_) sequences.push_back(sequence);
  for (const SequencePtr& sequence : sequences) {
    if (sequence->state != SequenceState::running || !sequence->decoding()) continue;
    const size_t mark = journal_.undo.size();
    if (reserve(sequence, 1, true) == 1) {
      emit(sequence, 1);
    } else {
      undo_to(mark);
      preempt(sequence);
    }
  }
}

// The oldest prefill may take what the others do not want, and at least half: so a short prompt does not
// queue behind all chunks of a long one.
int Scheduler::rows_wanted_by_others(const Sequence& first) const {
  int rows = 0;
  const int half = budget_ / 2;
  for (const auto& [order, sequence] : running_) {
    if (rows >= half) return half;
    if (sequence.get() != &first && !sequence->decoding()) rows += sequence->rows_left();
  }
  const bool room = static_cast<int>(running_.size()) < options_.max_num_seqs &&
                    cache_.available() > promised_blocks() + 1 && options_.batching == Batching::continuous;
  if (!room) return std::min(rows, half);
  for (const auto& [order, sequence] : waiting_) {
    if (rows >= half) return half;
    if (sequence->sample == 0 && may_be_admitted(*sequence)) rows += sequence->rows_left();
  }
  return std::min(rows, half);
}

void Scheduler::plan_prefills() {
  std::vector<SequencePtr> sequences;
  for (const auto& [order, sequence] : running_) {
    if (sequence->rows_left() > 0 && sequence->planned_step != plan_->step) sequences.push_back(sequence);
  }
  bool first = true;
  for (const SequencePtr& sequence : sequences) {
    if (budget_ == 0) return;
    if (sequence->state != SequenceState::running) continue;
    int want = std::min(sequence->rows_left(), budget_);
    if (first) want = std::max(1, std::min(want, budget_ - rows_wanted_by_others(*sequence)));
    first = false;
    want = scorable_rows(*sequence, want);
    if (want == 0) continue;
    const size_t mark = journal_.undo.size();
    int rows = reserve(sequence, want, false);
    if (rows == 0) {  // then younger prefills give way, for one block
      undo_to(mark);
      rows = reserve(sequence, 1, true);
    }
    if (rows > 0) {
      emit(sequence, rows);
    } else {
      undo_to(mark);  // it keeps what it has and tries again
    }
  }
}

void Scheduler::open_batch() {
  if (!running_.empty()) return;
  for (const auto& [order, sequence] : waiting_) {
    if (sequence->in_batch) return;
  }
  int members = 0;
  for (const auto& [order, sequence] : waiting_) {
    if (members++ == options_.max_num_seqs) return;
    sequence->in_batch = true;
  }
}

void Scheduler::plan_admissions() {
  if (options_.batching == Batching::static_) open_batch();
  auto next = waiting_.begin();
  while (next != waiting_.end() && budget_ > 0 && static_cast<int>(running_.size()) < options_.max_num_seqs) {
    const SequencePtr sequence = next->second;
    if (may_be_admitted(*sequence) && admit(sequence) == Admit::no_room) return;
    next = waiting_.upper_bound(sequence->order());
  }
}

bool Scheduler::may_be_admitted(Sequence& sequence) const {
  if (sequence.planned_step > completed_) return false;  // preempted with rows in flight
  if (options_.batching == Batching::static_ && !sequence.in_batch) return false;
  if (const SequencePtr leader = sequence.wait_for.lock()) {
    const bool waits = leader->state == SequenceState::running && leader->prefilling() &&
                       leader->published < sequence.wait_tokens;
    if (waits) return false;
    sequence.wait_for.reset();
  }
  if (sequence.sample == 0 || sequence.ran) return true;
  // A parallel sample joins the first one when that has its prompt.
  const ServiceOrder first{sequence.request->id, 0};
  for (const Queue* queue : {&waiting_, &running_}) {
    const auto found = queue->find(first);
    if (found != queue->end() && found->second->drawn() == 0) return false;
  }
  return true;
}

// Waiting costs at most the steps that compute the common part, which the sequence would need itself; it pays
// when that is a block, or half of its work.
bool Scheduler::waits_for_leader(Sequence& sequence, int64_t found) const {
  if (!cache_.caching()) return false;
  const int64_t last = sequence.findable();
  int64_t best = found;
  for (const auto& [order, leader] : running_) {
    if (leader->joining || !leader->prefilling() || leader->request->key != sequence.request->key) continue;
    const int64_t common = std::min(last, common_prefix(leader->tokens, sequence.tokens));
    const int64_t gain = common - found;
    if (common <= leader->published || common <= best) continue;
    if (gain < cache_.block_tokens() && 2 * gain < sequence.known() - found) continue;
    best = common;
    sequence.wait_for = leader;
    sequence.wait_tokens = static_cast<int>(common);
  }
  return best > found;
}

// Blocks that the prefills which run already will still take.
int64_t Scheduler::promised_blocks() const {
  int64_t blocks = 0;
  for (const auto& [order, sequence] : running_) {
    if (sequence->joining) {
      blocks += 1;  // its copy of the prompt's tail
    } else if (!sequence->decoding()) {
      blocks += std::max<int64_t>(0, cache_.blocks_for(sequence->known() + 1) - sequence->table.size());
    }
  }
  return blocks;
}

Scheduler::Admit Scheduler::admit(const SequencePtr& sequence) {
  const size_t mark = journal_.undo.size();
  if (scores_left_ == 0 && sequence->scored < sequence->scorable()) return Admit::wait;
  const std::span<const int32_t> tokens(sequence->tokens);
  kvcache::PrefixMatch match =
      cache_.match(sequence->request->key, tokens.first(static_cast<size_t>(sequence->findable())));
  if (waits_for_leader(*sequence, match.tokens(cache_.block_tokens()))) return Admit::wait;
  if (!running_.empty()) {
    const int64_t need = cache_.blocks_for(sequence->known() + 1) - static_cast<int64_t>(match.blocks.size());
    const int64_t headroom = std::max(1, cache_.pool().total() / 100);  // against preempting it at once
    if (cache_.available() - promised_blocks() < need + headroom) return Admit::no_room;
  }
  const bool first_time = !sequence->ran;
  running_.insert(waiting_.extract(sequence->order()));
  sequence->state = SequenceState::running;
  sequence->ran = true;
  remember([this, sequence, first_time] {
    waiting_.insert(running_.extract(sequence->order()));
    sequence->state = SequenceState::waiting;
    sequence->ran = !first_time;
    sequence->table.release();
    sequence->scheduled = sequence->verified = sequence->published = 0;
  });
  adopt_match(sequence, std::move(match));
  const int found = sequence->scheduled;
  const int want = scorable_rows(*sequence, std::min(sequence->rows_left(), budget_));
  const int rows = reserve(sequence, want, false);
  if (rows == 0) {
    undo_to(mark);
    return Admit::no_room;
  }
  if (first_time && sequence->sample == 0) {
    const auto prompt = static_cast<uint64_t>(sequence->prompt_tokens());
    const uint64_t hits = static_cast<uint64_t>(found);
    counters_.cache_queries += prompt;
    counters_.cache_hits += hits;
    admissions_.push_back({sequence->request->id, found});
    remember([this, prompt, hits] {
      counters_.cache_queries -= prompt;
      counters_.cache_hits -= hits;
    });
  }
  emit(sequence, rows);
  return Admit::yes;
}

void Scheduler::adopt_match(const SequencePtr& sequence, kvcache::PrefixMatch match) {
  BlockRef tail = std::move(match.tail);
  const int32_t rows = match.tail_rows;
  sequence->table.adopt(std::move(match));
  int found = static_cast<int>(sequence->table.capacity(cache_.block_tokens()));
  // Without a block for the copy those rows are computed instead, and the source may be evicted for it.
  BlockRef block = tail ? cache_.allocate() : BlockRef();
  if (block) {
    add_copy(tail.id(), block.id(), rows);
    sequence->table.append(std::move(block));
    journal_.pins.push_back(std::move(tail));
    found += rows;
  }
  sequence->scheduled = sequence->verified = sequence->published = found;
}

int Scheduler::pins_of(int32_t block) const {
  return static_cast<int>(std::count_if(journal_.pins.begin(), journal_.pins.end(),
                                        [block](const BlockRef& pin) { return pin && pin.id() == block; }));
}

// Whether a copy of this plan reads rows of `block` from `first` on.
bool Scheduler::is_copied_from(int32_t block, int32_t first) const {
  return std::any_of(plan_->copies, plan_->copies + plan_->num_copies, [=](const model::BlockCopy& copy) {
    return copy.source == block && copy.first + copy.count > first;
  });
}

// A block for `sequence`; if it may, younger sequences that this plan has not touched are preempted for it.
BlockRef Scheduler::allocate(const Sequence& sequence, bool may_preempt) {
  for (;;) {
    BlockRef block = cache_.allocate();
    if (block || !may_preempt) return block;
    SequencePtr victim;
    for (auto last = running_.rbegin(); last != running_.rend() && last->first > sequence.order(); ++last) {
      if (last->second->planned_step != plan_->step && !last->second->joining) {
        victim = last->second;
        break;
      }
    }
    if (victim == nullptr) return {};
    preempt(victim);
  }
}

// Copy on write: the block of the first row that will be written, if somebody else references it; without
// sharing, every block that came by a fork.
bool Scheduler::own_blocks(const SequencePtr& sequence, bool may_preempt) {
  kvcache::BlockTable& table = sequence->table;
  const int block_tokens = cache_.block_tokens();
  const int32_t writes = sequence->scheduled / block_tokens;
  for (int32_t index = cache_.sharing() ? writes : 0; index < table.size(); ++index) {
    const int32_t rows = std::min(block_tokens, sequence->scheduled - index * block_tokens);
    const auto must_copy = [&] {
      const int32_t id = table.id(index);
      return cache_.is_shared(table, index, pins_of(id)) || is_copied_from(id, rows);
    };
    if (!must_copy()) continue;
    BlockRef block = allocate(*sequence, may_preempt);
    if (!block) return false;
    if (!must_copy()) continue;  // the preempted may have been the ones that it was shared with
    if (rows > 0) add_copy(table.id(index), block.id(), rows);
    journal_.pins.push_back(table.replace(index, std::move(block)));
    const size_t pin = journal_.pins.size() - 1;
    remember([this, sequence, index, pin] {
      sequence->table.replace(index, std::move(journal_.pins[pin])).reset();
    });
  }
  return true;
}

// How many of the next `rows` rows may be in this plan: logits are kept of so many prompt rows only.
int Scheduler::scorable_rows(const Sequence& sequence, int rows) const {
  const int first = std::max(sequence.scheduled, sequence.scored);
  const bool all = sequence.scorable() - first <= scores_left_;
  return all ? rows : std::min(rows, first - sequence.scheduled + scores_left_);
}

// Makes up to `rows` positions from `scheduled` on writable; returns how many are.
int Scheduler::reserve(const SequencePtr& sequence, int rows, bool may_preempt) {
  kvcache::BlockTable& table = sequence->table;
  const int block_tokens = cache_.block_tokens();
  if (!own_blocks(sequence, may_preempt)) return 0;
  const int32_t before = table.size();
  remember([sequence, before, block_tokens] {
    sequence->table.truncate(static_cast<int64_t>(before) * block_tokens, block_tokens);
  });
  const auto last = static_cast<int64_t>(sequence->scheduled) + rows;
  while (table.capacity(block_tokens) < last) {
    BlockRef block = allocate(*sequence, may_preempt);
    if (!block) break;
    table.append(std::move(block));
  }
  const int64_t have = table.capacity(block_tokens) - sequence->scheduled;
  if (have < rows) return static_cast<int>(std::max<int64_t>(have, 0));
  // With lag the next step is planned before this one's tokens are known: have its block at hand.
  const bool ahead = options_.lag > 0 && sequence->drawn() + 1 < sequence->request->max_tokens;
  if (ahead && table.capacity(block_tokens) == last && cache_.pool().free() > 0) {
    if (BlockRef block = cache_.allocate()) table.append(std::move(block));
  }
  return rows;
}

void Scheduler::preempt(SequencePtr sequence) {
  let_go(*sequence, Disposal::keep);
  sequence->state = SequenceState::waiting;
  waiting_.insert(running_.extract(sequence->order()));
  ++counters_.preemptions;
  preempted_in_plan_ = true;
}

void Scheduler::add_copy(int32_t source, int32_t destination, int32_t count) {
  TESSERA_CHECK(source != destination && count > 0);
  plan_->copies[plan_->num_copies++] = {source, destination, 0, count};
  remember([this] { --plan_->num_copies; });
}

void Scheduler::emit_rows(const Sequence& sequence, int rows) {
  const int first_position = sequence.scheduled;
  const int block_tokens = cache_.block_tokens();
  PlanSequence& entry = plan_->sequences[plan_->num_sequences];
  entry.first_row = plan_->rows;
  entry.rows = rows;
  entry.first_position = first_position;
  entry.table = plan_->num_tables;
  entry.blocks = static_cast<int32_t>(cache_.blocks_for(first_position + rows));
  for (int32_t i = 0; i < entry.blocks; ++i) plan_->tables[plan_->num_tables++] = sequence.table.id(i);
  for (int i = 0; i < rows; ++i) {
    const int position = first_position + i;
    const int row = plan_->rows++;
    const bool known = position < sequence.known();
    plan_->row_token[row] = known ? sequence.tokens[static_cast<size_t>(position)] : -1;
    plan_->row_token_source[row] = known ? -1 : sequence.pending_sample;
    plan_->row_position[row] = position;
    plan_->row_slot[row] =
        sequence.table.id(position / block_tokens) * block_tokens + position % block_tokens;
    plan_->row_sequence[row] = plan_->num_sequences;
    plan_->row_kind[row] = position < sequence.prompt_tokens() ? RowKind::prompt : RowKind::step;
  }
  ++plan_->num_sequences;
}

// The sequence's next `rows` rows become part of the plan. REQUIRES: reserved.
void Scheduler::emit(const SequencePtr& sequence, int rows) {
  TESSERA_CHECK(rows >= 1 && rows <= budget_ && rows <= sequence->rows_left());
  remember([sequence, scheduled = sequence->scheduled, pending = sequence->pending,
            pending_sample = sequence->pending_sample, planned = sequence->planned_step] {
    sequence->scheduled = scheduled;
    sequence->pending = pending;
    sequence->pending_sample = pending_sample;
    sequence->planned_step = planned;
  });
  const bool draw = rows == sequence->rows_left();
  emit_rows(*sequence, rows);
  Flight flight{.sequence = sequence, .first_position = sequence->scheduled, .rows = rows, .draw = draw};
  add_scores(*sequence, rows, &flight);
  int32_t logit_row = -1;
  const bool last_is_scored = flight.scores > 0 && !draw;
  if (!last_is_scored && (draw || cache_.caching())) {
    logit_row = plan_->num_logit_rows++;
    plan_->logit_rows[logit_row] = plan_->rows - 1;
    flight.sample = add_sample(*sequence, logit_row, draw);
  }
  step_.flights.push_back(flight);
  if (draw && sequence->sample == 0 && sequence->drawn() == 0) join_siblings(sequence, logit_row);
  sequence->scheduled += rows;
  sequence->planned_step = plan_->step;
  if (draw) {
    ++sequence->pending;
    sequence->pending_sample = flight.sample;
  }
  budget_ -= rows;
}

// Parallel samples draw their first token from the same logits. They get their blocks when the result is
// there.
void Scheduler::join_siblings(const SequencePtr& sequence, int32_t logit_row) {
  const uint64_t request = sequence->request->id;
  auto next = waiting_.upper_bound({request, 0});
  while (next != waiting_.end() && next->first.request == request &&
         static_cast<int>(running_.size()) < options_.max_num_seqs) {
    const SequencePtr sibling = next->second;
    ++next;
    if (sibling->ran) continue;
    running_.insert(waiting_.extract(sibling->order()));
    sibling->state = SequenceState::running;
    sibling->ran = sibling->joining = true;
    sibling->pending_sample = add_sample(*sibling, logit_row, true);
    sibling->pending = 1;
    sibling->planned_step = plan_->step;
    step_.flights.push_back(
        {.sequence = sibling, .sample = sibling->pending_sample, .draw = true, .primary = sequence});
    remember([this, sibling] {
      waiting_.insert(running_.extract(sibling->order()));
      sibling->state = SequenceState::waiting;
      sibling->ran = sibling->joining = false;
      sibling->pending = 0;
      sibling->pending_sample = -1;
    });
  }
}

// The last `rows` rows of the plan are the sequence's next; those of the prompt are asked how likely the
// token behind them is.
void Scheduler::add_scores(const Sequence& sequence, int rows, Flight* flight) {
  const int first = std::max(sequence.scheduled, sequence.scored);
  const int end = std::min(sequence.scheduled + rows, sequence.scorable());
  if (first >= end) return;
  TESSERA_CHECK(end - first <= scores_left_);
  scores_left_ -= end - first;
  flight->first_score = plan_->num_samples;
  flight->scores = end - first;
  for (int position = first; position < end; ++position) {
    PlanSample& sample = plan_->samples[plan_->num_samples++];
    sample = PlanSample{};
    sample.logit_row = plan_->num_logit_rows++;
    plan_->logit_rows[sample.logit_row] = plan_->rows - rows + position - sequence.scheduled;
    sample.draw = false;
    sample.scored = sequence.tokens[static_cast<size_t>(position) + 1];
    sample.logprobs = sequence.request->sampling.prompt_logprobs;
  }
}

int32_t Scheduler::add_sample(const Sequence& sequence, int32_t logit_row, bool draw) {
  const int32_t index = plan_->num_samples++;
  PlanSample& sample = plan_->samples[index];
  sample = PlanSample{};
  sample.logit_row = logit_row;
  sample.draw = draw;
  if (!draw) return index;
  const SamplingParams& params = sequence.request->sampling;
  sample.top_k = params.top_k;
  sample.temperature = params.temperature;
  sample.top_p = params.top_p;
  sample.min_p = params.min_p;
  sample.repetition_penalty = params.repetition_penalty;
  sample.presence_penalty = params.presence_penalty;
  sample.frequency_penalty = params.frequency_penalty;
  sample.logprobs = params.logprobs;
  sample.seed = sequence.request->seed;
  sample.stream = static_cast<uint32_t>(sequence.sample);
  sample.token_index = static_cast<uint32_t>(sequence.drawn());
  const auto put_ids = [this](const std::vector<int32_t>& ids) {
    const int32_t begin = plan_->num_ids;
    std::copy(ids.begin(), ids.end(), plan_->ids + begin);
    plan_->num_ids += static_cast<int32_t>(ids.size());
    return begin;
  };
  if (needs_history(params)) {
    sample.history = put_ids(sequence.tokens);
    sample.history_prompt = sequence.prompt_tokens();
    sample.history_output = sequence.generated();
    sample.history_last_source = sequence.pending > 0 ? sequence.pending_sample : -1;
  }
  if (sequence.drawn() < params.min_tokens) {
    sample.banned = put_ids(sequence.request->ends);
    sample.banned_count = static_cast<int32_t>(sequence.request->ends.size());
  }
  sample.bias = plan_->num_biases;
  sample.bias_count = static_cast<int32_t>(params.logit_bias.size());
  for (const auto& [token, bias] : params.logit_bias) plan_->biases[plan_->num_biases++] = {token, bias};
  return index;
}

}  // namespace tessera::engine
