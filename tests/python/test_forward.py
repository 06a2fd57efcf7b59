"""Forward on NumPy arrays, against the definition in double."""

import numpy as np
import pytest
import tessera
from conftest import DTYPES, EPSILON
from reference import Features, attention, naive_float32, worst

# flash-attn's own shapes, odd on purpose: rows, keys.
SHAPES = [(113, 203), (108, 256), (1, 147), (3, 799), (127, 513), (217, 64)]


def make(rng, batch, rows, keys, heads, kv_heads, dim, v_dim=None, dtype=np.float32):
    shapes = [(batch, rows, heads, dim), (batch, keys, kv_heads, dim), (batch, keys, kv_heads, v_dim or dim)]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def tolerance(q, k, v, f, expected):
    """flash-attn's rule: twice the error of the plain form in the same dtype, plus the result's rounding."""
    rounding = EPSILON[q.dtype.name] * max(1.0, float(np.abs(expected).max(initial=0.0)))
    return 2 * worst(naive_float32(q, k, v, f), expected) + 2 * rounding + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows, keys", SHAPES)
def test_flash_attn_func_is_the_definition(rng, rows, keys, causal, dtype):
    q, k, v = make(rng, 2, rows, keys, 6, 2, 64, dtype=dtype)
    out, lse, s_dmask = tessera.flash_attn_func(q, k, v, causal=causal, return_attn_probs=True)
    f = Features(64**-0.5, causal)
    expected, expected_lse = attention(q, k, v, f)
    assert out.dtype == dtype and out.shape == q.shape and lse.dtype == np.float32 and s_dmask.shape == (0,)
    assert worst(out, expected) <= tolerance(q, k, v, f, expected)
    expected_lse[expected_lse == -np.inf] = np.inf  # flash-attn's mark of an empty row
    finite = np.isfinite(expected_lse)
    assert (np.isfinite(lse) == finite).all() and (lse[~finite] == np.inf).all()
    # With bfloat16 operands the sum is of the rounded probabilities, so that they add up to 1.
    assert worst(lse[finite], expected_lse[finite]) <= (2.0**-8 if dtype.name == "bfloat16" else 1e-5)
    assert not out[np.swapaxes(~finite, 1, 2)].any()


@pytest.mark.parametrize("dim, v_dim", [(8, 8), (32, 32), (40, 24), (59, 59), (1, 1), (96, 160), (256, 256), (13, 7)])
def test_any_head_dim_is_padded_inside(rng, dim, v_dim):
    q, k, v = make(rng, 1, 37, 70, 2, 1, dim, v_dim)
    out = tessera.flash_attn_func(q, k, v, causal=True)
    expected, _ = attention(q, k, v, Features(dim**-0.5, True))
    assert out.shape == (1, 37, 2, v_dim)
    assert worst(out, expected) <= 5e-6


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
def test_consecutive_query_heads_share_a_kv_head(rng, kv_heads):
    q, k, v = make(rng, 1, 33, 90, 8, kv_heads, 32)
    assert worst(tessera.flash_attn_func(q, k, v), attention(q, k, v, Features(32**-0.5))[0]) <= 5e-6


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(0, 0), (5, 3), (-1, 2), (64, -1), (100, 0), (700, 2**40)])
@pytest.mark.parametrize("rows, keys", [(113, 203), (70, 70), (130, 64)])
def test_window(rng, rows, keys, window, causal):
    q, k, v = make(rng, 1, rows, keys, 2, 2, 32)
    out = tessera.flash_attn_func(q, k, v, causal=causal, window_size=window)
    assert worst(out, attention(q, k, v, Features(32**-0.5, causal, window))[0]) <= 5e-6


@pytest.mark.parametrize("per_batch", [False, True])
def test_alibi(rng, per_batch):
    q, k, v = make(rng, 3, 50, 80, 5, 1, 32)
    slopes = rng.random((3, 5) if per_batch else (5,), dtype=np.float32)
    out = tessera.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes)
    f = Features(32**-0.5, True, alibi=np.broadcast_to(slopes, (3, 5)))
    assert worst(out, attention(q, k, v, f)[0]) <= 5e-6


def test_alibi_slopes():
    assert tessera.alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert len(tessera.alibi_slopes(12)) == 12
    with pytest.raises(ValueError, match="heads=0"):
        tessera.alibi_slopes(0)


def test_softcap_and_scale(rng):
    q, k, v = make(rng, 2, 50, 80, 4, 2, 64)
    out = tessera.flash_attn_func(q, k, v, softmax_scale=0.7, softcap=3.0, window_size=(20, 4))
    assert worst(out, attention(q, k, v, Features(0.7, window=(20, 4), softcap=3.0))[0]) <= 5e-6


@pytest.mark.parametrize("lengths", [[5, 0, 70, 1], [0, 0], [200]])
def test_varlen_is_each_sequence_alone(rng, lengths):
    q_lengths, k_lengths = lengths, [n + 3 if n else 0 for n in lengths]
    cu_q, cu_k = (np.cumsum([0] + n).astype(np.int32) for n in (q_lengths, k_lengths))
    q = rng.standard_normal((cu_q[-1] + 4, 4, 32), dtype=np.float32)
    k, v = (rng.standard_normal((cu_k[-1] + 2, 2, 32), dtype=np.float32) for _ in "kv")
    out, lse, _ = tessera.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, max(q_lengths), max(k_lengths), causal=True, return_attn_probs=True
    )
    assert out.shape == q.shape and lse.shape == (4, len(q))
    for b in range(len(lengths)):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        alone, alone_lse, _ = tessera.flash_attn_func(
            q[None, rows], k[None, keys], v[None, keys], causal=True, return_attn_probs=True
        )
        assert np.array_equal(out[rows], alone[0]) and np.array_equal(lse[:, rows], alone_lse[0])
    assert not out[cu_q[-1] :].any() and (lse[:, cu_q[-1] :] == np.inf).all()


def test_packed_forms_read_the_same_bits(rng):
    qkv = rng.standard_normal((2, 40, 3, 4, 32), dtype=np.float32)
    expected = tessera.flash_attn_func(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], causal=True)
    assert np.array_equal(tessera.flash_attn_qkvpacked_func(qkv, causal=True), expected)
    assert np.array_equal(tessera.flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], causal=True), expected)
    flat = qkv.reshape(80, 3, 4, 32)
    cu = np.array([0, 40, 80])
    packed = tessera.flash_attn_varlen_qkvpacked_func(flat, cu, 40, causal=True)
    assert np.array_equal(packed.reshape(expected.shape), expected)
    packed = tessera.flash_attn_varlen_kvpacked_func(flat[:, 0], flat[:, 1:], cu, cu, 40, 40, causal=True)
    assert np.array_equal(packed.reshape(expected.shape), expected)


def test_strided_arrays_give_the_bits_of_contiguous_ones(rng):
    q, k, v = make(rng, 2, 30, 50, 4, 2, 32)
    expected = tessera.flash_attn_func(q, k, v)
    heads_first = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    assert np.array_equal(tessera.flash_attn_func(*heads_first), expected)
    every_other = [np.repeat(x, 2, axis=1)[:, ::2] for x in (q, k, v)]
    assert np.array_equal(tessera.flash_attn_func(*every_other), expected)
    backwards = [np.ascontiguousarray(x[:, ::-1])[:, ::-1] for x in (q, k, v)]
    assert np.array_equal(tessera.flash_attn_func(*backwards), expected)
    last = [np.asfortranarray(x) for x in (q, k, v)]  # the last dimension is not contiguous: one copy
    assert np.array_equal(tessera.flash_attn_func(*last), expected)
    read_only = [x.copy() for x in (q, k, v)]
    for x in read_only:
        x.setflags(write=False)
    assert np.array_equal(tessera.flash_attn_func(*read_only), expected)


class FromDlpack:
    """An array of some other library."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_any_dlpack_array_is_taken(rng):
    q, k, v = make(rng, 1, 9, 9, 2, 2, 16)
    out = tessera.flash_attn_func(*(FromDlpack(x) for x in (q, k, v)))
    assert isinstance(out, np.ndarray) and np.array_equal(out, tessera.flash_attn_func(q, k, v))


@pytest.mark.parametrize("batch, rows, keys", [(0, 4, 4), (2, 0, 4), (2, 4, 0), (0, 0, 0)])
def test_empty_arrays(batch, rows, keys):
    q, k = np.ones((batch, rows, 2, 16), np.float32), np.ones((batch, keys, 2, 16), np.float32)
    out, lse, _ = tessera.flash_attn_func(q, k, k, return_attn_probs=True)
    assert out.shape == q.shape and not out.any()
    assert lse.shape == (batch, 2, rows) and (lse == np.inf).all()


def test_hidden_keys_are_not_read_into_the_result(rng):
    q, k, v = make(rng, 1, 20, 40, 2, 2, 16)
    expected = tessera.flash_attn_func(q, k, v, causal=True, window_size=(10, -1))
    k[:, :5], v[:, :5] = np.nan, np.inf  # row 0 stands at 20 and sees 10 and later
    assert np.array_equal(tessera.flash_attn_func(q, k, v, causal=True, window_size=(10, -1)), expected)


def test_dropout_scales_what_it_keeps(rng):
    q, k, v = make(rng, 2, 64, 96, 2, 2, 32)
    tessera.manual_seed(7)
    out, _, s = tessera.flash_attn_func(q, k, v, dropout_p=0.25, causal=True, return_attn_probs=True)
    assert s.shape == (2, 2, 64, 96)
    seen = np.abs(s) > 0
    assert abs((s[seen] < 0).mean() - 0.25) < 0.02
    plain, _ = attention(q, k, v, Features(32**-0.5, True, keep=np.where(s < 0, 0.0, 1 / 0.75)))
    assert worst(out, plain) <= 5e-6
    assert not np.array_equal(out, tessera.flash_attn_func(q, k, v, dropout_p=0.25, causal=True))
    tessera.manual_seed(7)
    assert np.array_equal(out, tessera.flash_attn_func(q, k, v, dropout_p=0.25, causal=True))


def test_varlen_dropout_and_probabilities(rng):
    cu = np.array([0, 30, 30, 77], np.int32)
    q, k, v = (rng.standard_normal((77, 2, 16), dtype=np.float32) for _ in "qkv")
    out, _, s = tessera.flash_attn_varlen_func(q, k, v, cu, cu, 47, 47, 0.5, return_attn_probs=True)
    for b in range(3):
        rows = slice(cu[b], cu[b + 1])
        n = cu[b + 1] - cu[b]
        keep = np.where(s[b : b + 1, :, :n, :n] < 0, 0.0, 2.0)
        plain, _ = attention(q[None, rows], k[None, rows], v[None, rows], Features(0.25, keep=keep))
        assert worst(out[rows], plain[0]) <= 5e-6


def test_plain_forward_has_every_feature(rng):
    q, k, v = make(rng, 2, 30, 60, 4, 2, 16)
    mask = rng.standard_normal((2, 1, 30, 60), dtype=np.float32)
    mask[rng.random(mask.shape) < 0.3] = -np.inf
    used, pad = np.array([60, 41], np.int32), np.array([3, 0], np.int32)
    out, lse = tessera.attention_forward(q, k, v, softmax_scale=0.3, attn_mask=mask, seqused_k=used, leftpad_k=pad)
    f = Features(0.3, bias=np.broadcast_to(mask, (2, 4, 30, 60)), first=pad, keys=used)
    expected, expected_lse = attention(q, k, v, f)
    assert worst(out, expected) <= 5e-6
    finite = np.isfinite(expected_lse)
    assert worst(lse[finite], expected_lse[finite]) <= 1e-5 and (lse[~finite] == -np.inf).all()


@pytest.mark.parametrize("shape", [(20, 33), (1, 33), (20, 1), (1, 1, 20, 33), (2, 1, 20, 33), (4, 20, 33), (2, 4, 1, 33)])
@pytest.mark.parametrize("kind", ["bool", "float32", "float16"])
def test_sdpa_masks_broadcast(rng, shape, kind):
    q, k, v = (x.swapaxes(1, 2) for x in make(rng, 2, 20, 33, 4, 4, 16))
    if kind == "bool":
        mask = rng.random(shape) < 0.7
        bias = np.where(mask, 0.0, -np.inf)
    else:
        mask = rng.standard_normal(shape).astype(kind)
        bias = mask
    out = tessera.scaled_dot_product_attention(q, k, v, mask)
    f = Features(0.25, bias=np.broadcast_to(bias, (2, 4, 20, 33)))
    expected, _ = attention(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), f)
    assert worst(out, expected.swapaxes(1, 2)) <= 5e-6


@pytest.mark.parametrize("rows, keys", [(20, 33), (33, 20), (25, 25), (4, 0)])
def test_sdpa_causal_is_aligned_to_the_top_left(rng, rows, keys):
    q, k, v = (x.swapaxes(1, 2) for x in make(rng, 2, rows, keys, 4, 2, 16, 24))
    out = tessera.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=0.5)
    bias = np.broadcast_to(np.where(np.tri(rows, keys, dtype=bool), 0.0, -np.inf), (2, 4, rows, keys))
    expected, _ = attention(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), Features(0.5, bias=bias))
    assert out.shape == (2, 4, rows, 24) and worst(out, expected.swapaxes(1, 2)) <= 5e-6


def test_sdpa_of_three_dimensions(rng):
    q, k, v = (rng.standard_normal((3, n, 16), dtype=np.float32) for n in (5, 7, 7))
    mask = rng.random((3, 5, 7)) < 0.5
    out = tessera.scaled_dot_product_attention(q, k, v, mask)
    expected = tessera.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask[:, None])
    assert np.array_equal(out, expected[:, 0])
