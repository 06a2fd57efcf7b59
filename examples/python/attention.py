"""Tessera's attention from Python, with NumPy alone. Run it after `pip install .` in the repository."""

import numpy as np
import tessera

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def definition(q, k, v, causal):
    """softmax(q k^T / sqrt(d)) v, written out in double with the whole matrix."""
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2).astype(np.float64) for x in (k, v))
    scores = np.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    if causal:
        rows, keys = scores.shape[-2:]
        scores[..., ~np.tri(rows, keys, keys - rows, dtype=bool)] = -np.inf
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhij,bjhd->bihd", p / p.sum(axis=-1, keepdims=True), v)


def report(what, difference, limit=1e-5):
    print(f"{what:<60} largest difference {difference:.1e}")
    assert difference < limit


print(f"tessera {tessera.__version__}, {tessera.get_num_threads()} threads")

# 1. A batch of equal lengths: 8 query heads share 2 kv heads.
q, k, v = normal(2, 100, 8, 64), normal(2, 130, 2, 64), normal(2, 130, 2, 64)
out, lse, _ = tessera.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
report("flash_attn_func, against the definition", np.abs(out - definition(q, k, v, True)).max())

# 2. Sequences of different lengths, one behind the other: no padding is stored or computed.
lengths = [7, 90, 33]
cu_seqlens = np.cumsum([0] + lengths)
q, k, v = normal(130, 8, 64), normal(130, 2, 64), normal(130, 2, 64)
out = tessera.flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max(lengths), max(lengths), causal=True)
second = slice(cu_seqlens[1], cu_seqlens[2])
alone = tessera.flash_attn_func(q[None, second], k[None, second], v[None, second], causal=True)
report("flash_attn_varlen_func, against one sequence alone", np.abs(out[second] - alone[0]).max())

# 3. Decoding: every step appends its key and value to the cache, in place, and attends to all before it.
q, k, v = normal(1, 20, 8, 64), normal(1, 20, 2, 64), normal(1, 20, 2, 64)
k_cache, v_cache = np.zeros((1, 256, 2, 64), np.float32), np.zeros((1, 256, 2, 64), np.float32)
steps = []
for t in range(20):
    step = slice(t, t + 1)
    steps.append(
        tessera.flash_attn_with_kvcache(q[:, step], k_cache, v_cache, k[:, step], v[:, step], cache_seqlens=t, causal=True)
    )
whole = tessera.flash_attn_func(q, k, v, causal=True)
report("flash_attn_with_kvcache in 20 steps, against one call", np.abs(np.concatenate(steps, axis=1) - whole).max())

# 4. Attention over parts of the keys, joined exactly by their LSE.
q, k, v = normal(1, 16, 8, 64), normal(1, 300, 2, 64), normal(1, 300, 2, 64)
parts = [
    tessera.flash_attn_func(q, k[:, keys], v[:, keys], return_attn_probs=True)[:2] for keys in (slice(0, 123), slice(123, 300))
]
merged, _ = tessera.merge_state(*parts[0], *parts[1])
report("merge_state of two parts, against the whole", np.abs(merged - tessera.flash_attn_func(q, k, v)).max())

# 5. A prefix tree: four sequences share a prompt of 640 tokens, which is stored once and read once a step.
tree = tessera.PrefixTree(num_blocks=32, kv_heads=2, head_dim=64, dtype="float32")
prompt = rng.integers(0, 1000, 640)
q, k, v = normal(640, 8, 64), normal(640, 2, 64), normal(640, 2, 64)
first = tree.sequence(prompt)
tessera.tree_attention(q, tree.step([first], [prompt]), k=k, v=v)
sequences = [first, first.fork(), first.fork(), first.fork()]
step = tree.step(sequences, [[1], [2], [3], [4]])
q, k_new, v_new = normal(4, 8, 64), normal(4, 2, 64), normal(4, 2, 64)
out = tessera.tree_attention(q, step, k=k_new, v=v_new)
k, v = (np.concatenate([x, new[3:]])[None] for x, new in ((k, k_new), (v, v_new)))
report("tree_attention, against the fourth sequence alone", np.abs(out[3] - definition(q[None, 3:], k, v, True)[0]).max())
reads = step.reads()
print(f"  tiles of K and V read: {reads['tiles']}; with a walk for each sequence {reads['unshared']}")

# 6. Gradients without any framework.
q, k, v = normal(1, 16, 8, 64), normal(1, 300, 2, 64), normal(1, 300, 2, 64)
out, lse = tessera.attention_forward(q, k, v)
dq, dk, dv = tessera.attention_backward(np.ones_like(out), q, k, v, out, lse)
nudge = 1e-3 * normal(*q.shape)
change = (definition(q + nudge, k, v, False) - definition(q - nudge, k, v, False)).sum() / 2
report("attention_backward, against a finite difference (relative)", abs((dq * nudge).sum() - change) / abs(change), 1e-3)
