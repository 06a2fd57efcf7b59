#!/usr/bin/env python3
"""Makes the goldens of single operations, tests/goldens/ops_*, by PyTorch, transformers and gguf-py.

Everything is computed in double precision from float32 inputs and rounded once, so an op is compared with the
right answer and not with another float32 rounding of it; only rotary angles are float32, as models are trained.
With --check it remakes and compares.

    pip install -r tools/requirements.txt
    tools/make_op_goldens.py [--check]
"""

import math
import sys

import gguf
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

import golden

SCRIPT = "tools/make_op_goldens.py"


def uniform(rng, *shape, scale=1.0):
    """Seeded by NumPy, whose generators keep their streams over versions."""
    return torch.from_numpy((scale * rng.uniform(-1, 1, shape)).astype(np.float32))


def normal(rng, *shape, scale=1.0):
    return torch.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32))


def rms_norm():
    made = golden.Golden("ops_rms_norm", SCRIPT, golden.versions("torch", "numpy"))
    rng = np.random.default_rng(1)
    for name, rows, n, scale, eps in [("smollm2", 3, 576, 1.0, 1e-5), ("odd", 5, 33, 1.0, 1e-6),
                                      ("one_column", 2, 1, 1.0, 1e-5), ("epsilon_rules", 2, 64, 1e-4, 1e-5),
                                      ("large", 2, 160, 3e4, 1e-5), ("wide", 1, 2048, 1.0, 1e-6)]:
        x, delta, weight = normal(rng, rows, n, scale=scale), normal(rng, rows, n, scale=scale), normal(rng, n)
        total = x + delta  # rounded to float32, as the residual stream is
        norm = lambda t: F.rms_norm(t.double(), (n,), weight.double(), eps).float()
        made.add(name, {"epsilon": eps},
                 {"x": x, "weight": weight, "y": norm(x), "delta": delta, "sum": total, "y_of_sum": norm(total)})
    zero = torch.zeros(1, 64)
    made.add("zero_row", {"epsilon": 1e-5},
             {"x": zero, "weight": torch.ones(64), "y": zero, "delta": zero, "sum": zero, "y_of_sum": zero})
    return made


def rope():
    """half: by transformers; interleaved: a product of complex numbers, as in the paper."""
    made = golden.Golden("ops_rope", SCRIPT, golden.versions("torch", "transformers", "numpy"))
    rng = np.random.default_rng(2)
    cases = [("smollm2", 9, 64, 64, 100000.0, 1.0), ("odd_dim", 4, 40, 40, 5000.0, 1.0),
             ("partial", 2, 24, 16, 10000.0, 1.0), ("linear_scaling", 2, 16, 16, 10000.0, 4.0),
             ("wide", 1, 128, 128, 500000.0, 1.0)]
    for name, heads, head_dim, dims, base, factor in cases:
        positions = torch.tensor([0, 1, 2, 17, 511, 512, 1100, 8191])
        x = normal(rng, len(positions), heads, head_dim)
        scaling = {"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
        config = transformers.LlamaConfig(hidden_size=dims * heads, num_attention_heads=heads, head_dim=dims,
                                          max_position_embeddings=8192,
                                          rope_parameters={**scaling, "rope_theta": base})
        cos, sin = LlamaRotaryEmbedding(config)(x, positions[None])
        rotated = x[:, :, :dims].double()
        half, _ = apply_rotary_pos_emb(rotated[None], rotated[None], cos.double(), sin.double(), unsqueeze_dim=2)
        turn = torch.complex(cos[0, :, None, :dims // 2].double(), sin[0, :, None, :dims // 2].double())
        pairs = torch.view_as_complex(rotated.reshape(len(positions), heads, dims // 2, 2).contiguous())
        interleaved = torch.view_as_real(pairs * turn).reshape(rotated.shape)
        rest = x[:, :, dims:]
        made.add(name, {"dims": dims, "base": base, "factor": factor},
                 {"positions": positions, "x": x, "half": torch.cat([half[0].float(), rest], -1),
                  "interleaved": torch.cat([interleaved.float(), rest], -1)})
    return made


def glu():
    made = golden.Golden("ops_glu", SCRIPT, golden.versions("torch", "numpy"))
    rng = np.random.default_rng(3)
    for name, rows, n, scale in [("smollm2", 2, 1536, 1.0), ("odd", 3, 37, 8.0), ("large", 1, 128, 60.0)]:
        gate, up = uniform(rng, rows, n, scale=2 * scale), normal(rng, rows, n)
        made.add(name, {}, {"gate": gate, "up": up, "silu": F.silu(gate.double()).float(),
                            "silu_mul": (F.silu(gate.double()) * up.double()).float()})
    edge = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, 20.0, -20.0, 87.0, -87.0, 88.0, -88.0, 90.0, -90.0,
                          100.0, -100.0, 104.0, -104.0, 1e4, -1e4, 3e38, -3e38]])
    up = torch.full_like(edge, 0.5)
    made.add("edges", {}, {"gate": edge, "up": up, "silu": F.silu(edge.double()).float(),
                           "silu_mul": (F.silu(edge.double()) * 0.5).float()})
    return made


def attention_case(rng, batch, seqlen_q, seqlen_k, heads, kv_heads, head_dim, causal, left=-1, right=-1, softcap=0.0,
                   alibi=False, score=1.0):
    """SDPA in double precision with the visible keys as a boolean mask, aligned at the bottom right; LSE apart.

    softcap and ALiBi are not SDPA's: those cases are written out. k and v are exact in bfloat16, so that a cache
    stored so holds the same problem."""
    q = normal(rng, batch, seqlen_q, heads, head_dim, scale=score)
    k = normal(rng, batch, seqlen_k, kv_heads, head_dim).bfloat16().float()
    v = normal(rng, batch, seqlen_k, kv_heads, head_dim).bfloat16().float()
    scale = float(np.float32(1 / math.sqrt(head_dim)))
    i = torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    j = torch.arange(seqlen_k)[None]
    visible = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    if causal: visible &= j <= i
    if left >= 0: visible &= j >= i - left
    if right >= 0: visible &= j <= i + right

    qd, kd, vd = (t.double().transpose(1, 2) for t in (q, k, v))
    group = heads // kv_heads
    scores = scale * qd @ kd.repeat_interleave(group, 1).transpose(2, 3)
    if softcap > 0: scores = softcap * torch.tanh(scores / softcap)
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)])
    if alibi: scores = scores - slopes.double()[None, :, None, None] * (i - j).abs()
    scores = scores.masked_fill(~visible, -math.inf)
    lse = torch.logsumexp(scores, -1)
    dead = ~visible.any(-1)
    written = (torch.softmax(scores, -1).masked_fill(dead[None, None, :, None], 0.0)
               @ vd.repeat_interleave(group, 1))
    if softcap > 0 or alibi:
        o = written
    else:
        o = F.scaled_dot_product_attention(qd, kd, vd, attn_mask=visible, scale=scale, enable_gqa=True)
        o = o.masked_fill(dead[None, None, :, None], 0.0)
        assert (o - written).abs().max() < 1e-12
    params = {"causal": causal, "window_left": left, "window_right": right, "softcap": softcap, "scale": scale,
              "masked_rows": int(dead.sum())}
    tensors = {"q": q, "k": k, "v": v, "o": o.transpose(1, 2).float(), "lse": lse.float()}
    if alibi: tensors["alibi_slopes"] = slopes
    return params, tensors


def attention():
    """o [batch, seqlen_q, heads, head_dim], lse [batch, heads, seqlen_q]."""
    made = golden.Golden("ops_attention", SCRIPT, golden.versions("torch", "numpy"))
    rng = np.random.default_rng(4)
    for name, arguments in [
        ("mha_full", (2, 5, 7, 2, 2, 16, False)),
        ("gqa_causal", (1, 9, 9, 9, 3, 64, True)),
        ("mqa_causal_odd_dim", (1, 9, 33, 4, 1, 40, True)),
        ("wide_head", (1, 2, 4, 2, 1, 256, True)),
        ("narrow_head", (1, 3, 70, 2, 1, 8, True)),
        ("decode_over_a_segment", (1, 1, 515, 3, 1, 8, True)),
        ("decode_over_two_segments", (1, 1, 1030, 2, 1, 8, True)),
        ("prefill_over_a_segment", (1, 66, 576, 2, 1, 8, True)),
        ("window", (1, 35, 35, 2, 1, 40, True, 15)),
        ("window_of_one", (1, 6, 6, 2, 1, 16, True, 0)),
        ("window_over_a_segment", (1, 4, 560, 2, 1, 8, True, 520)),
        ("two_sided_window", (1, 30, 30, 2, 1, 16, False, 4, 3)),
        ("more_queries_than_keys", (1, 12, 5, 2, 1, 16, True)),
        ("one_key", (2, 1, 1, 4, 2, 24, True)),
        ("sharp_scores", (1, 4, 80, 2, 1, 32, True, -1, -1, 0.0, False, 30.0)),
        ("softcap", (1, 6, 40, 2, 1, 16, True, -1, -1, 5.0, False, 4.0)),
        ("alibi", (1, 6, 40, 4, 2, 16, True, -1, -1, 0.0, True)),
    ]:
        params, tensors = attention_case(rng, *arguments)
        made.add(name, params, tensors)
    return made


def dequantize():
    """What the bytes of each GGUF type mean, by gguf-py: rows of 96 values."""
    made = golden.Golden("ops_dequantize", SCRIPT, golden.versions("gguf", "numpy"))
    rng = np.random.default_rng(5)
    kinds = gguf.GGMLQuantizationType
    rows, n = 4, 96
    values = rng.standard_normal((rows, n)).astype(np.float32)
    for kind in (kinds.F16, kinds.BF16, kinds.Q4_0, kinds.Q4_1, kinds.Q8_0):
        data = gguf.quants.quantize(values, kind)
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(rows, -1)
        made.add(kind.name, {"type": int(kind)}, {"bytes": raw, "values": gguf.quants.dequantize(data, kind)})
        if kind in (kinds.F16, kinds.BF16):
            continue
        # Every nibble and byte, with scales over the whole of float16: subnormal, negative, largest.
        block, size = gguf.GGML_QUANT_SIZES[kind]
        scales = np.array([6e-8, -6e-8, 1.0, -0.5, 65504.0, 2.0**-14, 0.0, -3.0], np.float16)
        hostile = rng.integers(0, 256, (len(scales), size), dtype=np.uint8)
        hostile[:, 0:2] = scales.view(np.uint8).reshape(-1, 2)
        if kind == kinds.Q4_1:
            hostile[:, 2:4] = scales[::-1].copy().view(np.uint8).reshape(-1, 2)
        made.add(f"{kind.name}_extremes", {"type": int(kind)},
                 {"bytes": hostile, "values": gguf.quants.dequantize(hostile, kind).reshape(len(scales), block)})
    return made


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(golden.main(__doc__, lambda: [rms_norm(), rope(), glu(), attention(), dequantize()]))
