#!/usr/bin/env python3
"""Makes tests/goldens/attention_masks.*: mask tensors, padding and variable lengths, by PyTorch's attention.

Everything is computed by scaled_dot_product_attention in double precision from float32 inputs and rounded once. A
boolean mask hides where it is false, an additive one is added; rows that see nothing give 0, where PyTorch gives
NaN. With --check it remakes and compares.

    pip install -r tools/requirements.txt
    tools/make_attention_goldens.py [--check]
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

import golden

SCRIPT = "tools/make_attention_goldens.py"
INF = math.inf


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def sdpa(q, k, v, scale, mask=None, visible=None):
    """o [batch, seqlen, heads, dim] and LSE [batch, heads, seqlen] of q, k, v in that layout."""
    qd, kd, vd = (t.double().transpose(1, 2) for t in (q, k, v))
    added = torch.zeros(q.shape[0], q.shape[2], q.shape[1], k.shape[1], dtype=torch.float64)
    if mask is not None:
        added = added.masked_fill(~mask, -INF) if mask.dtype == torch.bool else added + mask.double()
    if visible is not None:
        added = added.masked_fill(~visible, -INF)
    dead = (added == -INF).all(-1, keepdim=True)
    o = F.scaled_dot_product_attention(qd, kd, vd, attn_mask=added, scale=scale, enable_gqa=True)
    group = q.shape[2] // k.shape[2]
    scores = scale * qd @ kd.repeat_interleave(group, 1).transpose(2, 3) + added
    return o.masked_fill(dead, 0.0).transpose(1, 2), torch.logsumexp(scores, -1)


def masks():
    made = golden.Golden("attention_masks", SCRIPT, golden.versions("torch", "numpy"))
    rng = np.random.default_rng(11)
    scale = float(np.float32(1 / math.sqrt(16)))
    for name, kind, shape, causal in [("boolean", "boolean", (2, 2, 9, 70), False),
                                      ("boolean_of_keys", "boolean", (2, 1, 1, 70), False),
                                      ("boolean_of_heads_causal", "boolean", (1, 2, 9, 70), True),
                                      ("additive", "additive", (2, 2, 9, 70), False),
                                      ("additive_of_rows_and_keys", "additive", (1, 1, 9, 70), False),
                                      ("additive_of_batches_causal", "additive", (2, 1, 9, 70), True)]:
        q, k, v = normal(rng, 2, 9, 2, 16), normal(rng, 2, 70, 1, 16), normal(rng, 2, 70, 1, 24)
        if kind == "boolean":
            mask = torch.from_numpy(rng.random(shape) < 0.6)
        else:
            mask = normal(rng, *shape)
            mask[torch.from_numpy(rng.random(shape) < 0.2)] = -INF
            mask[torch.from_numpy(rng.random(shape) < 0.05)] = torch.finfo(torch.float32).min
        if shape[2] > 1:  # a row that sees nothing
            mask[0, :, 3] = False if kind == "boolean" else -INF
        shown = mask
        if kind == "additive":  # what is as low as the dtype goes hides
            shown = mask.masked_fill(mask == torch.finfo(torch.float32).min, -INF)
        visible = torch.ones(9, 70, dtype=torch.bool).tril(70 - 9) if causal else None
        o, lse = sdpa(q, k, v, scale, shown, visible)
        made.add(name, {"kind": kind, "causal": causal, "scale": scale},
                 {"q": q, "k": k, "v": v, "mask": mask, "o": o.float(), "lse": lse.float()})
    return made


def lengths():
    """Sequences of different lengths side by side, and caches padded at the front and used in part."""
    made = golden.Golden("attention_lengths", SCRIPT, golden.versions("torch", "numpy"))
    rng = np.random.default_rng(12)
    scale = float(np.float32(1 / math.sqrt(16)))
    for name, rows, keys, causal in [("varlen", [5, 0, 12, 1], [33, 4, 80, 66], False),
                                     ("varlen_causal", [7, 3, 0, 20], [70, 3, 0, 20], True),
                                     ("more_rows_than_keys", [9, 2], [4, 70], True)]:
        q, k, v = (normal(rng, n, 2, 16) for n in (sum(rows), sum(keys), sum(keys)))
        o, lse = torch.zeros(sum(rows), 2, 16), torch.zeros(2, sum(rows))
        cu_q, cu_k = np.cumsum([0] + rows), np.cumsum([0] + keys)
        for i in range(len(rows)):
            if rows[i] == 0:
                continue
            a, b, c, d = cu_q[i], cu_q[i + 1], cu_k[i], cu_k[i + 1]
            visible = torch.ones(rows[i], keys[i], dtype=torch.bool)
            if causal:
                visible = visible.tril(keys[i] - rows[i])
            part, part_lse = sdpa(q[None, a:b], k[None, c:d], v[None, c:d], scale, visible=visible)
            o[a:b], lse[:, a:b] = part[0].float(), part_lse[0].float()
        made.add(name, {"causal": causal, "scale": scale, "longest_q": max(rows), "longest_k": max(keys)},
                 {"q": q, "k": k, "v": v, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "o": o, "lse": lse})
    for name, causal in [("padding", False), ("padding_causal", True)]:
        q, k, v = normal(rng, 3, 6, 2, 16), normal(rng, 3, 90, 2, 16), normal(rng, 3, 90, 2, 16)
        used, pad = np.array([90, 64, 7]), np.array([3, 0, 2])
        row, key = torch.arange(6)[None, :, None], torch.arange(90)[None, None]
        ends = torch.from_numpy(used)[:, None, None]
        visible = (key < ends) & (key >= torch.from_numpy(pad)[:, None, None])
        if causal:
            visible = visible & (key <= row + ends - 6)
        visible = visible.expand(3, 6, 90)
        o, lse = sdpa(q, k, v, scale, visible=visible[:, None])
        made.add(name, {"causal": causal, "scale": scale},
                 {"q": q, "k": k, "v": v, "seqused_k": used, "leftpad_k": pad, "o": o.float(), "lse": lse.float()})
    return made


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(golden.main(__doc__, lambda: [masks(), lengths()]))
