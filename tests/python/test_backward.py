"""Backward on NumPy arrays: the definition's gradients in double, and finite differences of the definition itself."""

import numpy as np
import pytest
import tessera
from conftest import DTYPES, EPSILON
from reference import Features, attention, worst


def make(rng, batch, rows, keys, heads, kv_heads, dim, v_dim, dtype=np.float32):
    shapes = [(batch, rows, heads, dim), (batch, keys, kv_heads, dim), (batch, keys, kv_heads, v_dim)]
    shapes.append((batch, rows, heads, v_dim))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def check(q, k, v, dout, f, tolerance=3e-5, **options):
    out, lse = tessera.attention_forward(q, k, v, softmax_scale=f.scale, **options)
    grads = tessera.attention_backward(dout, q, k, v, out, lse, softmax_scale=f.scale, **options)
    expected = attention(q, k, v, f, dout)[2:]
    for name, grad, one, x in zip(("dq", "dk", "dv"), grads, expected, (q, k, v)):
        assert grad.shape == x.shape and grad.dtype == x.dtype
        largest = max(1.0, float(np.abs(one).max(initial=0.0)))
        assert worst(grad, one) <= tolerance * largest, name


def test_the_reference_agrees_with_finite_differences(rng):
    q, k, v, dout = make(rng, 1, 5, 7, 2, 1, 4, 3, np.float64)
    f = Features(0.6, True, (3, -1), 2.0, alibi=np.array([[0.3, 0.1]]))
    grads = attention(q, k, v, f, dout)[2:]
    for x, grad in zip((q, k, v), grads):
        for at in rng.permutation(x.size)[:12]:
            at = np.unravel_index(at, x.shape)
            kept = x[at]
            x[at] = kept + 1e-5
            above = (attention(q, k, v, f)[0] * dout).sum()
            x[at] = kept - 1e-5
            below = (attention(q, k, v, f)[0] * dout).sum()
            x[at] = kept
            assert abs((above - below) / 2e-5 - grad[at]) <= 1e-7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows, keys", [(113, 203), (128, 217), (1, 147), (217, 64), (70, 600)])
def test_gradients_are_the_definitions(rng, rows, keys, causal, dtype):
    q, k, v, dout = make(rng, 2, rows, keys, 4, 2, 32, 32, dtype)
    tolerance = 3e-5 if dtype == np.float32 else 8 * EPSILON[dtype.name]
    check(q, k, v, dout, Features(32**-0.5, causal), tolerance, causal=causal)


@pytest.mark.parametrize("dim, v_dim", [(8, 8), (64, 24), (24, 128), (256, 256)])
def test_head_dims(rng, dim, v_dim):
    check(*make(rng, 1, 40, 65, 4, 1, dim, v_dim), Features(dim**-0.5))


def test_masks_alibi_softcap_window_and_padding(rng):
    q, k, v, dout = make(rng, 2, 30, 60, 4, 2, 16, 16)
    slopes = rng.random((2, 4), dtype=np.float32)
    mask = rng.random((2, 1, 30, 60)) < 0.8
    used, pad = np.array([60, 41], np.int32), np.array([3, 0], np.int32)
    options = dict(window_size=(25, 10), softcap=2.0, alibi_slopes=slopes, attn_mask=mask, seqused_k=used, leftpad_k=pad)
    bias = np.broadcast_to(np.where(mask, 0.0, -np.inf), (2, 4, 30, 60))
    f = Features(0.4, window=(25, 10), softcap=2.0, alibi=slopes, bias=bias, first=pad, keys=used)
    check(q, k, v, dout, f, **options)


def test_dropout_uses_the_forward_mask(rng):
    q, k, v, dout = make(rng, 1, 40, 60, 2, 2, 16, 16)
    keep = np.empty((1, 2, 40, 60), np.uint8)
    tessera._core.dropout_mask(keep, 0.5, 11, 5)
    assert 0.4 < keep.mean() < 0.6
    check(q, k, v, dout, Features(0.25, keep=2.0 * keep), dropout_p=0.5, seed=11, offset=5)


def test_varlen_gradients_are_each_sequences_own(rng):
    cu_q, cu_k = np.array([0, 5, 5, 75], np.int32), np.array([0, 9, 12, 80], np.int32)
    q, dout = (rng.standard_normal((77, 4, 16), dtype=np.float32) for _ in "qd")
    k, v = (rng.standard_normal((81, 2, 16), dtype=np.float32) for _ in "kv")
    options = dict(causal=True)
    varlen = dict(options, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    out, lse = tessera.attention_forward(q, k, v, **varlen)
    dq, dk, dv = tessera.attention_backward(dout, q, k, v, out, lse, **varlen)
    for b in range(3):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        one = [x[None, part] for x, part in ((q, rows), (k, keys), (v, keys))]
        o, o_lse = tessera.attention_forward(*one, **options)
        alone = tessera.attention_backward(dout[None, rows], *one, o, o_lse, **options)
        for grad, part, expected in zip((dq, dk, dv), (rows, keys, keys), alone):
            assert np.array_equal(grad[part], expected[0])
    for grad in (dq[75:], dk[80:], dv[80:]):
        assert not grad.any()


def test_repeated_and_threaded_runs_have_the_same_bits(rng):
    arrays = make(rng, 2, 150, 700, 4, 2, 32, 32)
    results = []
    for threads in (1, 2, 3, 1):
        tessera.set_num_threads(threads)
        assert tessera.get_num_threads() == threads
        q, k, v, dout = arrays
        out, lse = tessera.attention_forward(q, k, v, causal=True)
        results.append((out, lse, *tessera.attention_backward(dout, q, k, v, out, lse, causal=True)))
    tessera.set_num_threads(0)
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0]))
