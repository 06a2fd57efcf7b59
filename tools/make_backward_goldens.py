#!/usr/bin/env python3
"""Makes tests/goldens/attention_backward: the gradients of attention by PyTorch's autograd.

In double precision from float32 inputs, rounded once. Where scaled_dot_product_attention can say the problem, its own
backward is the oracle and the written-out form must agree with it; soft cap and ALiBi are written out.
With --check it remakes and compares.

    pip install -r tools/requirements.txt
    tools/make_backward_goldens.py [--check]
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

import golden

SCRIPT = "tools/make_backward_goldens.py"


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def case(rng, batch, seqlen_q, seqlen_k, heads, kv_heads, head_dim, v_head_dim=None, causal=False, left=-1, right=-1,
         softcap=0.0, alibi=False, mask=None):
    """Tensors as [batch, seqlen, heads, dim]; causal and windows are aligned at the bottom right."""
    q, k = normal(rng, batch, seqlen_q, heads, head_dim), normal(rng, batch, seqlen_k, kv_heads, head_dim)
    v = normal(rng, batch, seqlen_k, kv_heads, v_head_dim or head_dim)
    dout = normal(rng, batch, seqlen_q, heads, v_head_dim or head_dim)
    scale = float(np.float32(1 / math.sqrt(head_dim)))
    i = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    j = torch.arange(seqlen_k)[None]
    visible = torch.ones(batch, heads, seqlen_q, seqlen_k, dtype=torch.bool)
    if causal: visible &= j <= i
    if left >= 0: visible &= j >= i - left
    if right >= 0: visible &= j <= i + right
    tensors = {"q": q, "k": k, "v": v, "dout": dout}
    added = torch.zeros(seqlen_q, seqlen_k, dtype=torch.float64)
    if mask == "boolean":  # one for every head
        tensors["mask"] = torch.from_numpy(rng.random((batch, 1, seqlen_q, seqlen_k)) < 0.7)
        visible &= tensors["mask"]
    if mask == "additive":  # one for every batch
        tensors["mask"] = normal(rng, 1, heads, seqlen_q, seqlen_k)
        tensors["mask"][torch.from_numpy(rng.random((1, heads, seqlen_q, seqlen_k)) < 0.3)] = -math.inf
        visible = visible & (tensors["mask"] > -math.inf)
        added = tensors["mask"].double()
    if alibi:
        tensors["alibi_slopes"] = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)])
        added = -tensors["alibi_slopes"].double()[None, :, None, None] * (i - j).abs()
    dead = ~visible.any(-1, keepdim=True)
    group = heads // kv_heads

    def gradients(attend):
        leaves = [t.double().transpose(1, 2).requires_grad_() for t in (q, k, v)]
        o, lse = attend(*leaves)
        found = torch.autograd.grad(o, leaves, dout.double().transpose(1, 2))
        return [t.detach() for t in (o, *found)], lse

    def written(q, k, v):
        scores = scale * q @ k.repeat_interleave(group, 1).transpose(2, 3)
        if softcap > 0: scores = softcap * torch.tanh(scores / softcap)
        # A dead row would be a softmax of nothing, whose gradient is NaN: it takes all keys, then counts for nothing.
        scores = torch.where(visible | dead, (scores + added).nan_to_num(neginf=0.0), -math.inf)
        p = torch.softmax(scores, -1).masked_fill(dead, 0.0)
        lse = torch.logsumexp(scores, -1).masked_fill(dead[..., 0], -math.inf)
        return p @ v.repeat_interleave(group, 1), lse.detach()

    def sdpa(q, k, v):
        bias = torch.where(visible | dead, added.nan_to_num(neginf=0.0), -math.inf)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=True)
        return o.masked_fill(dead, 0.0), None

    results, lse = gradients(written)
    if softcap == 0:
        oracle, _ = gradients(sdpa)
        assert max((a - b).abs().max() for a, b in zip(oracle, results)) < 1e-11
        results = oracle
    tensors |= dict(zip(("o", "dq", "dk", "dv"), (t.transpose(1, 2).float() for t in results)))
    tensors["lse"] = lse.float()
    params = {"scale": scale, "causal": causal, "window_left": left, "window_right": right, "softcap": softcap,
              "mask": mask or "none", "dead_rows": int(dead.sum())}
    return params, tensors


def attention_backward():
    made = golden.Golden("attention_backward", SCRIPT, golden.versions("torch", "numpy"))
    rng = np.random.default_rng(6)
    for name, sizes, options in [
        ("full", (2, 5, 7, 2, 2, 16), {}),
        ("gqa_causal", (1, 20, 20, 6, 2, 24), {"causal": True}),
        ("mqa_wide_values", (1, 9, 33, 4, 1, 16), {"causal": True, "v_head_dim": 40}),
        ("over_a_tile", (1, 30, 75, 1, 1, 8), {"causal": True}),
        ("over_a_segment", (1, 5, 530, 1, 1, 8), {"causal": True}),
        ("dead_rows", (1, 12, 5, 2, 1, 8), {"causal": True}),
        ("window", (1, 30, 30, 2, 1, 8), {"left": 4, "right": 3}),
        ("softcap", (1, 6, 40, 2, 1, 16), {"causal": True, "softcap": 2.0}),
        ("alibi", (1, 6, 40, 4, 2, 16), {"causal": True, "alibi": True}),
        ("boolean_mask", (2, 9, 20, 2, 1, 8), {"mask": "boolean"}),
        ("additive_mask", (2, 9, 20, 2, 1, 8), {"mask": "additive", "causal": True}),
    ]:
        made.add(name, *case(rng, *sizes, **options))
    return made


if __name__ == "__main__":
    sys.exit(golden.main(__doc__, lambda: [attention_backward()]))
