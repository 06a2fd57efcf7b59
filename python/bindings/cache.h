// Calls over the caller's cache, as Python hands them over (tessera/paged.h).
#pragma once

#include <optional>
#include <string>

#include "bindings/options.h"
#include "tessera/paged.h"

namespace tessera::python {

// With k and v, k_cache and v_cache are written; without, k_read and v_read are read only. cos and sin may be
// None.
struct Cache {
  AnyOut k_cache, v_cache;
  AnyIn k_read, v_read;
  AnyIn k, v;
  AnyIn cos, sin;
  std::string rotary_dtype;
  bool interleaved = true;
  AnyIn seqlens, batch_idx, block_table;
};

// What a call over a cache gets, every array checked to be where the call runs and of the shapes that it
// says.
struct CacheCall {
  CacheCall(const AnyIn& q, const Cache& cache, const AnyOut& o, const AnyOut& lse, const Options& options);
  CacheCall(const CacheCall&) = delete;  // append points to rotary
  CacheCall& operator=(const CacheCall&) = delete;

  attention::AttentionProblem problem;
  attention::CacheView view;
  attention::CacheAppend append;
  attention::Rotary rotary;
  attention::CacheTensors tensors;
  std::optional<Lse> stats;  // store() it when the call has run
};

}  // namespace tessera::python
