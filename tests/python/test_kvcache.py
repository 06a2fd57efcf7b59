"""flash_attn_with_kvcache and paged varlen, against the same attention over keys laid out by hand."""

import numpy as np
import pytest
import tessera
from conftest import DTYPES, EPSILON
from reference import Features, attention, worst


def rotate(x, cos, sin, positions, interleaved):
    """x (rows, heads, dim) turned by its rows' positions, in double."""
    x = np.asarray(x, np.float64)
    half = cos.shape[1]
    c, s = (np.asarray(t, np.float64)[positions][:, None, :] for t in (cos, sin))
    a, b = (x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]) if interleaved else (x[..., :half], x[..., half : 2 * half])
    out = x.copy()
    if interleaved:
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = a * c - b * s, a * s + b * c
    else:
        out[..., :half], out[..., half : 2 * half] = a * c - b * s, a * s + b * c
    return out


def tables(positions, half):
    angle = np.arange(positions)[:, None] / 10000.0 ** (np.arange(half) / half)[None, :]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, new, rotary", [(1, 1, "halves"), (1, 1, None), (5, 3, "interleaved"), (5, 3, None), (64, 0, None)]
)
@pytest.mark.parametrize("paged", [False, True])
def test_appends_rotates_and_attends(rng, rows, new, rotary, paged, dtype):
    batch, capacity, kv_heads, dim, block = 3, 320, 2, 64, 64
    lengths = np.array([100, 299, 17], np.int32)
    k_rows, v_rows = (rng.standard_normal((batch, capacity, kv_heads, dim)).astype(dtype) for _ in "kv")
    q = rng.standard_normal((batch, rows, 6, dim)).astype(dtype)
    k, v = (rng.standard_normal((batch, new, kv_heads, dim)).astype(dtype) for _ in "kv")
    options = dict(cache_seqlens=lengths, causal=True, return_softmax_lse=True)
    if paged:
        table = rng.permutation(batch * capacity // block).reshape(batch, -1).astype(np.int32)
        k_cache, v_cache = (np.empty((table.size, block, kv_heads, dim), dtype) for _ in "kv")
        for cache, source in ((k_cache, k_rows), (v_cache, v_rows)):
            cache[table.ravel()] = source.reshape(table.size, block, kv_heads, dim)
        options["block_table"] = table
    else:
        k_cache, v_cache = k_rows.copy(), v_rows.copy()
    if new:
        options.update(k=k, v=v)
    q_turned, k_turned = q, k
    if rotary:
        cos, sin = tables(capacity, 16)  # half of each head
        options.update(rotary_cos=cos, rotary_sin=sin, rotary_interleaved=rotary == "interleaved")
        q_turned, k_turned = (
            np.stack([rotate(x[b], cos, sin, n + np.arange(x.shape[1]), rotary == "interleaved") for b, n in enumerate(lengths)])
            for x in (q, k)
        )

    out, lse = tessera.flash_attn_with_kvcache(q, k_cache, v_cache, **options)

    k_all, v_all = (cache[table].reshape(batch, capacity, kv_heads, dim) if paged else cache for cache in (k_cache, v_cache))
    for b in range(batch):
        end = lengths[b] + new
        keep = np.ones(capacity, bool)
        keep[lengths[b] : end] = False
        assert np.array_equal(k_all[b, keep], k_rows[b, keep]) and np.array_equal(v_all[b, keep], v_rows[b, keep])
        assert np.array_equal(v_all[b, lengths[b] : end], v[b])
        assert worst(k_all[b, lengths[b] : end], k_turned[b]) <= 1e-6 + 8 * EPSILON[dtype.name] * bool(rotary)
    expected, expected_lse = attention(q_turned, k_all, v_all, Features(dim**-0.5, True, keys=lengths + new))
    assert worst(out, expected) <= 1e-5 + 12 * EPSILON[dtype.name]
    expected_lse[expected_lse == -np.inf] = np.inf
    assert np.array_equal(np.isfinite(lse), np.isfinite(expected_lse))


def test_head_dims_that_are_padded_are_written_back(rng):
    k_cache, v_cache = (rng.standard_normal((2, 40, 1, 20), dtype=np.float32) for _ in "kv")
    before = k_cache.copy()
    q, k, v = (rng.standard_normal((2, 2, 2 if x == "q" else 1, 20), dtype=np.float32) for x in "qkv")
    out = tessera.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=7)
    assert np.array_equal(k_cache[:, 7:9], k) and np.array_equal(v_cache[:, 7:9], v)
    assert np.array_equal(k_cache[:, :7], before[:, :7]) and np.array_equal(k_cache[:, 9:], before[:, 9:])
    expected, _ = attention(q, k_cache, v_cache, Features(20**-0.5, keys=np.array([9, 9])))
    assert worst(out, expected) <= 5e-6


def test_cache_batch_idx_left_padding_and_windows(rng):
    k_cache, v_cache = (rng.standard_normal((5, 90, 2, 32), dtype=np.float32) for _ in "kv")
    q = rng.standard_normal((3, 4, 2, 32), dtype=np.float32)
    rows, pad, lengths = np.array([4, 0, 2]), np.array([0, 20, 3]), np.array([90, 50, 4])
    slopes = rng.random((3, 2), dtype=np.float32)
    out = tessera.flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=lengths, cache_batch_idx=rows, cache_leftpad=pad, window_size=(40, 0),
        softcap=4.0, alibi_slopes=slopes,
    )  # fmt: skip
    f = Features(32**-0.5, window=(40, 0), softcap=4.0, alibi=slopes, first=pad, keys=lengths)
    assert worst(out, attention(q, k_cache[rows], v_cache[rows], f)[0]) <= 5e-6


def test_num_splits_and_threads_never_change_the_bits(rng):
    k_cache, v_cache = (rng.standard_normal((2, 2000, 1, 64), dtype=np.float32) for _ in "kv")
    q = rng.standard_normal((2, 1, 8, 64), dtype=np.float32)
    results = []
    for splits, threads in ((0, 1), (1, 2), (7, 3), (64, 1)):
        tessera.set_num_threads(threads)
        results.append(tessera.flash_attn_with_kvcache(q, k_cache, v_cache, num_splits=splits))
    tessera.set_num_threads(0)
    assert all(np.array_equal(result, results[0]) for result in results)


def test_rotated_queries_stand_at_one_position_without_a_mask(rng):
    cos, sin = tables(64, 8)
    k_cache, v_cache = (np.zeros((1, 64, 1, 16), np.float32) for _ in "kv")
    q, k, v = (rng.standard_normal((1, 3, 1, 16), dtype=np.float32) for _ in "qkv")
    out = tessera.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cos, sin, cache_seqlens=5)
    turned = rotate(q[0], cos, sin, np.full(3, 5), True)[None]
    assert worst(out, attention(turned, k_cache[:, :8], v_cache[:, :8], Features(0.25))[0]) <= 5e-6


def test_varlen_over_blocks(rng):
    k_cache, v_cache = (rng.standard_normal((9, 16, 2, 32), dtype=np.float32) for _ in "kv")
    table = np.array([[3, 8, 1], [0, 5, 5]], np.int32)
    cu_q, cu_k = np.array([0, 4, 10]), np.array([0, 40, 57])
    q = rng.standard_normal((10, 4, 32), dtype=np.float32)
    out, lse, _ = tessera.flash_attn_varlen_func(
        q, k_cache, v_cache, cu_q, cu_k, 6, 40, causal=True, return_attn_probs=True, block_table=table
    )
    for b, keys in enumerate((40, 17)):
        rows = slice(cu_q[b], cu_q[b + 1])
        k, v = (cache[table[b]].reshape(1, 48, 2, 32)[:, :keys] for cache in (k_cache, v_cache))
        expected, expected_lse = attention(q[None, rows], k, v, Features(32**-0.5, True))
        assert worst(out[rows], expected[0]) <= 5e-6 and worst(lse[:, rows], expected_lse[0]) <= 1e-5


@pytest.mark.parametrize(
    "change, error, text",
    [
        (dict(cache_seqlens=np.array([8, 15])), ValueError, "1[67]"),
        (dict(cache_seqlens=np.array([-1, 3])), ValueError, "-1"),
        (dict(cache_seqlens=None), ValueError, "cache_seqlens"),
        (dict(cache_seqlens=np.array([1.0, 2.0])), TypeError, "cache_seqlens"),
        (dict(v=None), ValueError, "together"),
        (dict(cache_batch_idx=np.array([0, 9])), ValueError, "9"),
        (dict(cache_batch_idx=np.array([1, 1])), ValueError, "1"),
        (dict(block_table=np.array([[0], [7]])), ValueError, "7"),
        (dict(block_table=np.array([0, 1])), ValueError, "block_table"),
        (dict(block_table=np.array([[0], [1]]), cache_batch_idx=np.array([0, 1])), ValueError, "cache_batch_idx"),
        (dict(cache_leftpad=np.array([0, 99])), ValueError, "leftpad"),
        (dict(rotary_cos=np.ones((3, 4), np.float32), rotary_sin=np.ones((3, 4), np.float32)), ValueError, "position"),
        (dict(rotary_cos=np.ones((30, 9), np.float32), rotary_sin=np.ones((30, 9), np.float32)), ValueError, "rotary_cos"),
        (dict(rotary_cos=np.ones((30, 4), np.float32)), ValueError, "rotary_sin"),
        (dict(num_splits=-1), ValueError, "num_splits"),
        (dict(num_splits=1.5), TypeError, "num_splits"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(change, error, text):
    caches = [np.zeros((2, 16, 1, 16), np.float32) for _ in "kv"]
    options = dict(k=np.ones((2, 2, 1, 16), np.float32), v=np.ones((2, 2, 1, 16), np.float32), cache_seqlens=3)
    options.update(change)
    with pytest.raises(error, match=text):
        tessera.flash_attn_with_kvcache(np.ones((2, 2, 2, 16), np.float32), *caches, **options)
    assert not any(cache.any() for cache in caches)


def test_a_read_only_cache_is_not_written():
    cache = np.zeros((1, 4, 1, 8), np.float32)
    cache.setflags(write=False)
    one = np.ones((1, 1, 1, 8), np.float32)
    assert not tessera.flash_attn_with_kvcache(one, cache, cache, cache_seqlens=2).any()
    with pytest.raises(ValueError, match="k_cache is read-only"):
        tessera.flash_attn_with_kvcache(one, cache, cache, one, one, cache_seqlens=2)
