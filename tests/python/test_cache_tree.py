"""CacheTreePlan over NumPy arrays: flash_attn_with_kvcache's results by a plan, and every mistake named before a launch."""

import numpy as np
import pytest
import tessera
from test_kvcache import tables

BATCH, BLOCK, BLOCKS, KV_HEADS, HEADS, DIM = 3, 64, 20, 2, 4, 32
LENGTHS = np.array([290, 300, 70], np.int32)
# The first two share their first four blocks; -9: blocks that no key needs.
TABLE = np.array([[3, 5, 7, 9, 11, -9], [3, 5, 7, 9, 2, -9], [3, 8, -9, -9, -9, -9]], np.int32)


def caches(rng, dtype=np.float32):
    return [rng.standard_normal((BLOCKS, BLOCK, KV_HEADS, DIM)).astype(dtype) for _ in "kv"]


def rows(rng, heads, count=1, dtype=np.float32):
    return rng.standard_normal((BATCH, count, heads, DIM)).astype(dtype)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": (100, 0)},
        {"softcap": 5.0},
        {"alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0], np.float32)},
        {"cache_leftpad": np.array([3, 0, 70], np.int32)},
        {"softmax_scale": 0.5},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("share", [True, False, "always"])
def test_is_flash_attn_with_kvcache(rng, options, share):
    k_cache, v_cache = caches(rng)
    q = rows(rng, HEADS)
    plan = tessera.CacheTreePlan(HEADS, k_cache, v_cache, TABLE, LENGTHS, share=share, **options)
    out, lse = plan.attend(q, k_cache, v_cache, cache_seqlens=LENGTHS, block_table=TABLE, return_softmax_lse=True)
    where = dict(cache_seqlens=LENGTHS, block_table=TABLE, return_softmax_lse=True)
    expected, expected_lse = tessera.flash_attn_with_kvcache(q, k_cache, v_cache, **where, **options)
    assert np.array_equal(out, expected) and np.array_equal(lse, expected_lse)


def test_new_tokens_are_appended_and_rotated(rng):
    cos, sin = tables(400, DIM // 2)
    plans, results = [], []
    for by_plan in (True, False):
        state = np.random.default_rng(7)
        k_cache, v_cache = caches(state, np.float16)
        q, k, v = rows(state, HEADS, 1, np.float16), *(rows(state, KV_HEADS, 1, np.float16) for _ in "kv")
        arrays = (q, k_cache, v_cache, k, v, cos, sin)
        where = dict(cache_seqlens=LENGTHS, block_table=TABLE, rotary_interleaved=False)
        if by_plan:
            plans.append(tessera.CacheTreePlan(HEADS, k_cache, v_cache, TABLE, LENGTHS, seqlen_new=1))
            results.append((plans[0].attend(*arrays, **where), k_cache, v_cache))
        else:
            results.append((tessera.flash_attn_with_kvcache(*arrays, **where), k_cache, v_cache))
    for ours, theirs in zip(*results):
        assert np.array_equal(ours, theirs)


def test_on_the_cpu_nothing_is_shared_and_that_is_said(rng):
    k_cache, v_cache = caches(rng)
    plan = tessera.CacheTreePlan(HEADS, k_cache, v_cache, TABLE, LENGTHS, share="always")
    tiles = KV_HEADS * (5 + 5 + 2)
    assert plan.reads() == {"tiles": tiles, "shared_tiles": 0, "unshared": tiles}
    assert "each over its own table" in plan.explain()


def test_covers_says_what_attend_takes(rng):
    k_cache, v_cache = caches(rng)
    plan = tessera.CacheTreePlan(HEADS, k_cache, v_cache, TABLE, LENGTHS, seqlen_new=1)
    assert plan.covers(LENGTHS) and plan.covers(LENGTHS.tolist()) and plan.covers(383) and not plan.covers(384)


def test_plans_of_no_sequences(rng):
    k_cache, v_cache = caches(rng)
    table, lengths = np.zeros((0, 6), np.int32), np.zeros(0, np.int32)
    plan = tessera.CacheTreePlan(HEADS, k_cache, v_cache, table, lengths)
    out = plan.attend(np.zeros((0, 1, HEADS, DIM), np.float32), k_cache, v_cache, cache_seqlens=lengths, block_table=table)
    assert out.shape == (0, 1, HEADS, DIM)


@pytest.mark.parametrize(
    "change, error, text",
    [
        (dict(block_table=np.where(TABLE == 9, 20, TABLE)), ValueError, r"block_table=20 of sequence 0 must be from 0 to 19 \(entry 3\)"),
        (dict(block_table=np.where(TABLE == 8, -1, TABLE)), ValueError, r"block_table=-1 of sequence 2 must be from 0 to 19 \(entry 1\)"),
        (dict(cache_seqlens=np.array([290, 385, 70])), ValueError, r"seqlens=385 of sequence 1 must be from 0 to 384"),
        (dict(cache_seqlens=np.array([290, -1, 70])), ValueError, "seqlens=-1 of sequence 1"),
        (dict(cache_seqlens=384, seqlen_new=1), ValueError, r"seqlens=384 of sequence 0 must be from 0 to 383 \(capacity 384 less 1"),
        (dict(cache_seqlens=np.array([1, 2])), ValueError, r"cache_seqlens has shape \(2,\); it must be \(3,\)"),
        (dict(cache_seqlens=np.array([1.0, 2, 3])), TypeError, "cache_seqlens has dtype float64"),
        (dict(block_table=TABLE[0]), ValueError, r"block_table has shape \(6,\); it must have 2 dimensions"),
        (dict(block_table=TABLE.astype(np.int64) + 2**40), ValueError, "block_table holds a number that int32 cannot"),
        (dict(reserve=-1), ValueError, "reserve=-1 must be at least 0"),
        (dict(reserve=2**31), ValueError, r"reserve=2147483648 must be from 0 to 2\^30"),
        (dict(heads=3), ValueError, "heads=3 must be a multiple of k_cache's 2 heads"),
        (dict(share="sometimes"), ValueError, "share='sometimes' must be True, False or 'always'"),
        (dict(softcap=-1.0), ValueError, "softcap=-1.0"),
        (dict(window_size=(-2, 0)), ValueError, "window_size"),
        (dict(alibi_slopes=np.ones(3, np.float32)), ValueError, r"alibi_slopes has shape \(3,\)"),
        (dict(cache_leftpad=np.ones(4, np.int32)), ValueError, r"cache_leftpad has shape \(4,\)"),
        (dict(k_cache=np.zeros((20, 64, 2, 12), np.float32)), ValueError, "k_cache has head_dim 12"),
        (dict(v_cache=np.zeros((20, 32, 2, 32), np.float32)), ValueError, "v_cache has shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_in_a_plan_are_named(rng, change, error, text):
    k_cache, v_cache = caches(rng)
    arguments = dict(heads=HEADS, k_cache=k_cache, v_cache=v_cache, block_table=TABLE, cache_seqlens=LENGTHS)
    with pytest.raises(error, match=text):
        tessera.CacheTreePlan(**{**arguments, **change})


@pytest.mark.parametrize(
    "change, error, text",
    [
        (dict(q=np.zeros((3, 2, 4, 32), np.float32)), ValueError, r"q has shape \(3, 2, 4, 32\); it must be \(3, 1, 4, 32\)"),
        (dict(k_cache=np.zeros((19, 64, 2, 32), np.float32)), ValueError, r"k_cache has shape \(19, 64, 2, 32\)"),
        (dict(q=np.zeros((3, 1, 4, 32), np.float16)), TypeError, "k_cache has dtype float32 and q float16"),
        (dict(block_table=None), ValueError, "block_table is None"),
        (dict(cache_seqlens=None), ValueError, "cache_seqlens is None"),
        (dict(block_table=TABLE[:, :5]), ValueError, r"block_table has shape \(3, 5\); it must be \(3, 6\)"),
        (dict(k=np.zeros((3, 1, 2, 32), np.float32), v=np.zeros((3, 1, 2, 32), np.float32)), ValueError, "seqlen_new=0"),
        (dict(k=np.zeros((3, 1, 2, 32), np.float32)), ValueError, "k and v must be given together"),
        (dict(cache_seqlens=385), ValueError, "cache_seqlens=385 of sequence 0 must be from 0 to 384 under this plan"),
        (dict(cache_seqlens=np.array([385, 1, 1])), ValueError, "cache_seqlens=385"),
        (dict(rotary_cos=np.ones((9, 4)), rotary_sin=np.ones((9, 4))), ValueError, "rotary_cos needs k and v"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_in_a_call_are_named(rng, change, error, text):
    k_cache, v_cache = caches(rng)
    plan = tessera.CacheTreePlan(HEADS, k_cache, v_cache, TABLE, LENGTHS)
    arguments = dict(q=rows(rng, HEADS), k_cache=k_cache, v_cache=v_cache, cache_seqlens=LENGTHS, block_table=TABLE)
    with pytest.raises(error, match=text):
        plan.attend(**{**arguments, **change})
