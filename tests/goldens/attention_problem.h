// The problem of an attention golden: sizes, scale, and what it has of causal, windows, soft cap and ALiBi.
#pragma once

#include "tessera/attention.h"
#include "tests/support/golden.h"

namespace tessera::attention {

// The slopes are the golden's, which must outlive the problem.
inline AttentionProblem problem_of(const test::GoldenCase& c, DType dtype = DType::f32) {
  const std::vector<int64_t>&q = c.shape("q"), &k = c.shape("k");
  AttentionProblem p;
  p.batch = q[0];
  p.seqlen_q = q[1];
  p.seqlen_k = k[1];
  p.heads = static_cast<int>(q[2]);
  p.kv_heads = static_cast<int>(k[2]);
  p.head_dim = static_cast<int>(q[3]);
  p.v_head_dim = static_cast<int>(c.shape("v")[3]);
  p.dtype = dtype;
  p.scale = static_cast<float>(c.number("scale"));
  p.mask.causal = c.boolean("causal");
  p.mask.window_left = c.integer("window_left");
  p.mask.window_right = c.integer("window_right");
  p.softcap = static_cast<float>(c.number("softcap"));
  if (c.has("alibi_slopes")) p.alibi_slopes = c.f32("alibi_slopes").data();
  return p;
}

}  // namespace tessera::attention
