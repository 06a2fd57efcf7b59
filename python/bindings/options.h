// What the calls of attention have in common besides their tensors.
#pragma once

#include <string>
#include <vector>

#include "bindings/arrays.h"

namespace tessera::python {

// Filled attribute by attribute from Python; arrays may stay None.
struct Options {
  std::string dtype;
  float scale = 0.0f;
  bool causal = false;
  int64_t window_left = -1, window_right = -1;
  float softcap = 0.0f;
  AnyIn mask;
  std::string mask_dtype;
  AnyIn alibi_slopes;
  AnyIn cu_seqlens_q, cu_seqlens_k;
  int64_t max_seqlen_q = 0, max_seqlen_k = 0;
  AnyIn seqused_k, leftpad_k;
  float dropout_p = 0.0f;
  uint64_t seed = 0, offset = 0;
  Place place;
};

// expect_place() of the options' arrays.
void expect_places(const Options& options);

int narrow(int64_t value, const char* name);

// Sets all but lengths, cu_seqlens and the mask. REQUIRES: p.batch and p.heads are set.
void set_features(attention::AttentionProblem& p, const Options& options);

// Sets cu_seqlens_q, seqlen_q, total_q and batch. REQUIRES: options.cu_seqlens_q is given. ValueError unless
// they start at 0, never fall, end inside q's rows and are at most max_seqlen_q long. On a device they are
// not read: seqlen_q is max_seqlen_q and total_q all of q's rows.
void set_cu_seqlens_q(attention::AttentionProblem& p, const Options& options, int64_t rows);
void set_cu_seqlens_k(attention::AttentionProblem& p, const Options& options, int64_t rows);

// What lies behind the last sequence belongs to none and is set to 0 on the CPU. Does nothing when cu is
// null.
void zero_tail(const Array& array, const int32_t* cu, int64_t batch);

// The caller's lse, [batch, heads, seqlen_q], or [heads, rows] with cu_seqlens. The library's has no columns
// for rows behind the last sequence; where there are some, the columns go through a copy.
class Lse {
 public:
  // None is allowed: data() is null then.
  Lse(const Array& lse, const attention::AttentionProblem& p, const Sizes& q);
  float* data();
  void load();   // from the caller's, before data() is read
  void store();  // to the caller's, after data() was written; rows behind the last sequence get -inf

 private:
  float* lse_ = nullptr;
  int64_t heads_ = 0, rows_ = 0, used_ = 0;
  std::vector<float> copy_;
};

void expect_sizes(const Array& array, const Sizes& want, const char* name);

}  // namespace tessera::python
