#include "engine/stop.h"

#include <algorithm>

#include "core/check.h"

namespace tessera::engine {

StopChecker::StopChecker(const SamplingParams& params, std::span<const int32_t> eos_ids, int max_tokens,
                         std::unique_ptr<TextDecoder> decoder)
    : params_(params),
      max_tokens_(max_tokens),
      decoder_(std::move(decoder)),
      eos_ids_(params.ignore_eos ? std::span<const int32_t>() : eos_ids) {}

std::vector<int32_t> StopChecker::ends(const SamplingParams& params, std::span<const int32_t> eos_ids) {
  std::vector<int32_t> ids = params.stop_token_ids;
  if (!params.ignore_eos) ids.insert(ids.end(), eos_ids.begin(), eos_ids.end());
  return ids;
}

// Invariant 2. `held_` holds no whole stop string but those that the newest text completed.
bool StopChecker::find_stop(size_t* begin, size_t* end, const std::string** which) const {
  bool found = false;
  for (const std::string& stop : params_.stop) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t last = at + stop.size();
    if (!found || last < *end || (last == *end && at < *begin)) {
      *begin = at;
      *end = last;
      *which = &stop;
      found = true;
    }
  }
  return found;
}

// The length of the longest end of `held_` that a stop string begins with.
size_t StopChecker::held_suffix() const {
  size_t longest = 0;
  for (const std::string& stop : params_.stop) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > longest; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) longest = length;
    }
  }
  return longest;
}

StopChecker::Update StopChecker::push(int32_t token) {
  ++count_;
  Update update;
  const bool may_stop = count_ > params_.min_tokens;
  const auto is_in = [token](std::span<const int32_t> ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  if (may_stop && is_in(eos_ids_)) {
    update.finish = FinishReason::stop;
    update.text = flush();
    return update;
  }
  const bool stop_token = may_stop && is_in(params_.stop_token_ids);
  if (!stop_token || params_.include_stop_str_in_output) held_ += decoder_->push(token);
  if (!stop_token && count_ >= max_tokens_) held_ += decoder_->finish();
  size_t begin = 0, end = 0;
  const std::string* which = nullptr;
  if (may_stop && find_stop(&begin, &end, &which)) {
    held_.resize(params_.include_stop_str_in_output ? end : begin);
    update.finish = FinishReason::stop;
    update.stop_reason = *which;
    update.text = std::move(held_);
    held_.clear();
    return update;
  }
  if (stop_token) {
    update.finish = FinishReason::stop;
    update.stop_reason = std::to_string(token);
    update.text = flush();
  } else if (count_ >= max_tokens_) {
    update.finish = FinishReason::length;
    update.text = std::move(held_);
    held_.clear();
  } else {
    const size_t certain = held_.size() - held_suffix();
    update.text = held_.substr(0, certain);
    held_.erase(0, certain);
  }
  return update;
}

std::string StopChecker::flush() {
  std::string text = std::move(held_) + decoder_->finish();
  held_.clear();
  return text;
}

}  // namespace tessera::engine
