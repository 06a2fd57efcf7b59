"""apply_rotary_emb and merge_states."""

import numpy as np
import pytest
import tessera
from conftest import DTYPES, EPSILON
from reference import worst
from test_kvcache import rotate, tables


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_rotary(rng, interleaved, inplace, dtype):
    x = rng.standard_normal((2, 9, 3, 32)).astype(dtype)
    cos, sin = tables(40, 8)
    offsets = np.array([30, 2])
    expected = np.stack([rotate(x[b], cos, sin, offsets[b] + np.arange(9), interleaved) for b in range(2)])
    before = x.copy()
    out = tessera.apply_rotary_emb(x, cos, sin, interleaved, inplace, offsets)
    assert worst(out, expected) <= 1e-6 + 4 * EPSILON[dtype.name]
    assert (out is x) if inplace else np.array_equal(x, before)


def test_rotary_varlen_and_one_offset(rng):
    x = rng.standard_normal((12, 2, 16), dtype=np.float32)
    cos, sin = tables(20, 8)
    out = tessera.apply_rotary_emb(x, cos, sin, seqlen_offsets=3, cu_seqlens=np.array([0, 4, 4, 11]), max_seqlen=7)
    expected = x.astype(np.float64)
    expected[0:4] = rotate(x[0:4], cos, sin, 3 + np.arange(4), False)
    expected[4:11] = rotate(x[4:11], cos, sin, 3 + np.arange(7), False)
    assert worst(out, expected) <= 1e-6


def test_packed_rotary_turns_q_and_k_only(rng):
    cos, sin = tables(9, 4)
    qkv = rng.standard_normal((2, 9, 3, 2, 16), dtype=np.float32)
    before = qkv.copy()
    assert tessera.apply_rotary_emb_qkv_(qkv, cos, sin) is qkv
    for part in range(2):
        assert np.array_equal(qkv[:, :, part], tessera.apply_rotary_emb(before[:, :, part], cos, sin))
    assert np.array_equal(qkv[:, :, 2], before[:, :, 2])
    grouped = before.reshape(2, 9, 6, 16)[:, :, :5].copy()  # 3 query heads, 1 of k, 1 of v
    expected = np.concatenate([tessera.apply_rotary_emb(grouped[:, :, :4], cos, sin), grouped[:, :, 4:]], axis=2)
    assert np.array_equal(tessera.apply_rotary_emb_qkv_(grouped, cos, sin, num_heads_q=3), expected)
    kv = before[:, :, 1:].copy()
    tessera.apply_rotary_emb_kv_(kv, cos, sin)
    assert np.array_equal(kv[:, :, 0], tessera.apply_rotary_emb(before[:, :, 1], cos, sin))
    assert np.array_equal(kv[:, :, 1], before[:, :, 2])


@pytest.mark.parametrize("options", [dict(seqlen_offsets=36), dict(seqlen_offsets=np.array([0, 40])), dict(seqlen_offsets=-1)])
def test_positions_outside_the_table_are_refused(options):
    cos, sin = tables(40, 8)
    x = np.ones((2, 9, 1, 16), np.float32)
    with pytest.raises(ValueError):
        tessera.apply_rotary_emb(x, cos, sin, inplace=True, **options)
    assert (x == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_merge_to_the_whole(rng, dtype):
    q = rng.standard_normal((2, 7, 4, 32)).astype(dtype)
    k, v = (rng.standard_normal((2, 300, 2, 32)).astype(dtype) for _ in "kv")
    whole, whole_lse, _ = tessera.flash_attn_func(q, k, v, return_attn_probs=True)
    cuts = [0, 1, 130, 130, 300]
    parts = [tessera.flash_attn_func(q, k[:, a:b], v[:, a:b], return_attn_probs=True)[:2] for a, b in zip(cuts, cuts[1:])]
    out, lse = tessera.merge_states([o for o, _ in parts], [s for _, s in parts])
    assert worst(out, whole) <= 2e-6 + 3 * EPSILON[dtype.name]
    assert worst(lse, whole_lse) <= (1e-5 if dtype.name != "bfloat16" else 2.0**-8)
    two = tessera.merge_state(*parts[1], *parts[3])
    assert two[0].dtype == dtype and two[1].dtype == np.float32


def test_empty_parts_weigh_nothing(rng):
    out, lse = rng.standard_normal((5, 2, 8), dtype=np.float32), rng.standard_normal((2, 5), dtype=np.float32)
    nothing = np.full_like(out, np.nan)
    for mark in (np.inf, -np.inf):
        merged, merged_lse = tessera.merge_state(nothing, np.full_like(lse, mark), out, lse)
        assert np.array_equal(merged, out) and np.array_equal(merged_lse, lse)
        merged, merged_lse = tessera.merge_state(nothing, np.full_like(lse, mark), nothing, np.full_like(lse, mark))
        assert not merged.any() and (merged_lse == -np.inf).all()


def test_merge_names_what_is_wrong():
    out, lse = np.zeros((1, 3, 2, 8), np.float32), np.zeros((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match="1 outs and 0 lses"):
        tessera.merge_states([out], [])
    with pytest.raises(ValueError, match=r"outs\[1\] has shape"):
        tessera.merge_state(out, lse, out[:, :2], lse)
    with pytest.raises(ValueError, match=r"lses\[0\] has shape"):
        tessera.merge_state(out, lse[:, :, :2], out, lse)
    with pytest.raises(TypeError, match=r"lses\[0\] has dtype float16"):
        tessera.merge_state(out, lse.astype(np.float16), out, lse.astype(np.float16))
