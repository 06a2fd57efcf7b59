// Sequence: one sample of one request, as the scheduler sees it.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/request.h"
#include "kvcache/block_table.h"
#include "kvcache/prefix_tree.h"

namespace tessera::engine {

// What the scheduler is told about a request. Sizes and ids have been validated.
struct ScheduledRequest {
  uint64_t id = 0;  // rises with the time of arrival; who has the lower one is served first
  kvcache::RootKey key;
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int n = 1;
  int max_tokens = 1;  // lowered to what the context leaves
  uint64_t seed = 0;
  std::vector<int32_t> ends;  // ids that may not be drawn before sampling.min_tokens
};

// The order of service, of preemption (from behind) and of the lists.
struct ServiceOrder {
  uint64_t request = 0;
  int sample = 0;
  auto operator<=>(const ServiceOrder&) const = default;
};

enum class SequenceState : uint8_t { waiting, running, finished };

// Positions [0, published) <= [0, verified) <= [0, scheduled): K/V that other sequences may find; K/V whose
// step ended with finite logits; K/V that are computed or will be by the steps in flight.
struct Sequence {
  std::shared_ptr<const ScheduledRequest> request;
  int sample = 0;
  SequenceState state = SequenceState::waiting;
  std::vector<int32_t> tokens;  // the prompt and what was generated, as far as it is known
  kvcache::BlockTable table;
  int scheduled = 0;
  int verified = 0;
  int published = 0;
  int scored = 0;               // prompt positions whose row's log-probabilities are known
  int pending = 0;              // tokens that are being drawn by steps in flight: 0..2
  int32_t pending_sample = -1;  // the last one's index in its step's plan
  bool joining = false;         // its prompt is another sample's, still in flight: no table yet
  bool ran = false;             // was admitted at least once
  bool in_batch = false;        // static batching: a member of the current batch
  uint64_t planned_step = 0;    // the last plan that has rows of it
  // Single flight: it waits until this sequence has published wait_tokens, or stops running.
  std::weak_ptr<Sequence> wait_for;
  int wait_tokens = 0;

  ServiceOrder order() const { return {request->id, sample}; }
  int prompt_tokens() const { return static_cast<int>(request->prompt.size()); }
  int known() const { return static_cast<int>(tokens.size()); }
  int generated() const { return known() - prompt_tokens(); }
  // Rows until the next token can be drawn; 0: all that may be generated is, or is in flight.
  int rows_left() const {
    return joining || drawn() >= request->max_tokens ? 0 : known() + pending - scheduled;
  }
  // Rows of [scored, scorable()) are asked for log-probabilities of the token behind them.
  int scorable() const {
    return sample == 0 && request->sampling.prompt_logprobs >= 0 ? prompt_tokens() - 1 : 0;
  }
  // Leading tokens whose rows need not be computed when their K/V are found: at least one row is its own, and
  // a row without its log-probabilities has to be computed for them.
  int findable() const { return scored < scorable() ? scored : known() - 1; }
  int drawn() const { return generated() + pending; }
  bool decoding() const { return rows_left() == 1 && drawn() > 0; }
  // Its K/V are not yet verified up to the token that is to be extended.
  bool prefilling() const { return verified < known() - (generated() > 0 ? 1 : 0); }
};

}  // namespace tessera::engine
