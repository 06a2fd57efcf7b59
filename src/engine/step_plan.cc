#include "engine/step_plan.h"

#include "core/checked.h"
#include "core/format.h"

namespace tessera::engine {
namespace {

constexpr uint64_t kMaxBiasesPerSample = 1024;  // validate()'s limit of logit_bias
constexpr uint64_t kMaxBannedPerSample = 128;   // stop_token_ids (64) and the model's own ends
constexpr uint64_t kAlign = 64;

// Walks the arrays of a plan in order: once to size the allocation, once to place them.
template <typename Visit>
void for_each_array(StepPlan& plan, const StepLimits& limits, Visit&& visit) {
  const auto rows = static_cast<uint64_t>(limits.max_rows);
  const auto sequences = static_cast<uint64_t>(limits.max_sequences);
  const uint64_t samples = sequences + static_cast<uint64_t>(limits.max_scored_rows);
  const auto table = static_cast<uint64_t>(limits.max_blocks_per_sequence);
  const auto length = static_cast<uint64_t>(limits.max_model_len);
  visit(plan.row_token, CheckedSize(rows));
  visit(plan.row_token_source, CheckedSize(rows));
  visit(plan.row_position, CheckedSize(rows));
  visit(plan.row_slot, CheckedSize(rows));
  visit(plan.row_sequence, CheckedSize(rows));
  visit(plan.row_kind, CheckedSize(rows));
  visit(plan.sequences, CheckedSize(sequences));
  visit(plan.tables, CheckedSize(sequences) * table);
  visit(plan.copies, CheckedSize(sequences) * (CheckedSize(table) + 1));
  visit(plan.logit_rows, CheckedSize(samples));
  visit(plan.samples, CheckedSize(samples));
  visit(plan.ids, CheckedSize(sequences) * (CheckedSize(length) + kMaxBannedPerSample));
  visit(plan.biases, CheckedSize(sequences) * kMaxBiasesPerSample);
}

}  // namespace

Result<StepPlan> StepPlan::create(const StepLimits& limits) {
  if (limits.max_rows < 1 || limits.max_sequences < 1 || limits.max_blocks_per_sequence < 1 ||
      limits.max_model_len < 1 || limits.max_scored_rows < 0) {
    return invalid_argument(
        format("step limits: {} rows, {} sequences, {} blocks, {} tokens: each must be at "
               "least 1",
               limits.max_rows, limits.max_sequences, limits.max_blocks_per_sequence, limits.max_model_len));
  }
  StepPlan plan;
  plan.limits_ = limits;
  CheckedSize bytes(0);
  for_each_array(plan, limits, [&](auto*& array, CheckedSize count) {
    bytes = (bytes + count * sizeof(*array)).align_up(kAlign);
  });
  if (!bytes.ok() || *bytes.get() > uint64_t{1} << 40) {
    return invalid_argument("step limits: the plan would take more than 1 TiB; lower max_num_seqs",
                            "max_num_seqs");
  }
  TESSERA_ASSIGN_OR_RETURN(plan.storage_, Buffer::create(*bytes.get(), "step plan"));
  uint64_t offset = 0;
  for_each_array(plan, limits, [&](auto*& array, CheckedSize count) {
    array =
        reinterpret_cast<std::remove_reference_t<decltype(array)>>(plan.storage_.as<std::byte>() + offset);
    offset = *(CheckedSize(offset) + count * sizeof(*array)).align_up(kAlign).get();
  });
  return plan;
}

void StepPlan::clear() {
  rows = num_sequences = num_tables = num_copies = 0;
  num_logit_rows = num_samples = num_ids = num_biases = 0;
}

void StepPlan::load_params(const PlanSample& sample, SamplingParams* params) const {
  params->temperature = sample.temperature;
  params->top_k = sample.top_k;
  params->top_p = sample.top_p;
  params->min_p = sample.min_p;
  params->repetition_penalty = sample.repetition_penalty;
  params->presence_penalty = sample.presence_penalty;
  params->frequency_penalty = sample.frequency_penalty;
  params->logprobs = sample.logprobs;
  params->logit_bias.clear();
  for (const TokenBias& entry : biases_of(sample)) params->logit_bias.emplace_back(entry.token, entry.bias);
}

}  // namespace tessera::engine
