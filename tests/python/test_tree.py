"""PrefixTree and tree_attention, against attention over each sequence's own keys."""

import numpy as np
import pytest
import tessera
from reference import Features, attention, worst
from test_kvcache import rotate, tables

KV_HEADS, HEADS, DIM = 2, 4, 32


class Model:
    """K and V of a token at a position: a function of both, as a model's prefix is."""

    def __init__(self, rng, layers=1):
        self.table = rng.standard_normal((2, layers, 997, KV_HEADS, DIM), dtype=np.float32)

    def kv(self, tokens, first=0, layer=0):
        ids = (np.asarray(tokens, np.int64) * 31 + np.arange(first, first + len(tokens)) * 7) % 997
        return self.table[0, layer][ids], self.table[1, layer][ids]


def run(tree, model, rng, sequences, new, **options):
    """One step with checks of every row against the definition; returns the Step and out."""
    before = [len(s) for s in sequences]
    step = tree.step(sequences, new)
    assert step.rows == sum(map(len, new))
    positions = [first + i for first, tokens in zip(before, new) for i in range(len(tokens))]
    assert step.positions.tolist() == positions
    parts = [model.kv(tokens, first) for tokens, first in zip(new, before)]
    k, v = (np.concatenate([part[i] for part in parts]) for i in range(2))
    q = rng.standard_normal((step.rows, HEADS, DIM), dtype=np.float32)
    out, lse = tessera.tree_attention(q, step, k, v, return_softmax_lse=True, **options)
    row = 0
    for sequence, tokens in zip(sequences, new):
        rows = slice(row, row + len(tokens))
        row += len(tokens)
        keys, values = model.kv(sequence.tokens)
        f = Features(DIM**-0.5, True, options.get("window_size", (-1, -1)))
        expected, expected_lse = attention(q[None, rows], keys[None], values[None], f)
        assert worst(out[rows], expected[0]) <= 1e-5 and worst(lse[:, rows], expected_lse[0]) <= 1e-5
    assert np.array_equal(out, tessera.tree_attention(q, step, share=False, **options))
    assert sum(tree.blocks().values()) == tree.num_blocks
    tree._core.check_invariants()
    return step, out


def make(**options):
    return tessera.PrefixTree(**{**dict(num_blocks=32, kv_heads=KV_HEADS, head_dim=DIM, dtype="float32"), **options})


def test_shared_prefixes_are_found_and_read_once(rng):
    tree, model = make(num_blocks=64), Model(rng)
    prompt = rng.integers(0, 500, 700).tolist()
    first = tree.sequence(prompt)
    assert len(first) == 0
    run(tree, model, rng, [first], [prompt])
    first.publish()
    lengths = [700, 640, 641, 650, 699, 700, 130, 64]
    others = [tree.sequence(prompt[:n] + [900 + n]) for n in lengths]
    assert [len(s) for s in others] == lengths
    assert tree.blocks()["referenced"] == 11 + 6  # whole blocks by reference, a partly filled one each
    run(tree, model, rng, [first, *others], [[1], [2], [3, 4], [5], [6], [7], [8], [9], [10, 11, 12]])
    step = tree.step([first, *others], [[1]] * 9)
    q = rng.standard_normal((9, HEADS, DIM), dtype=np.float32)
    kv = rng.standard_normal((9, KV_HEADS, DIM), dtype=np.float32)
    together = tessera.tree_attention(q, step, kv, kv)
    reads = step.reads()
    assert reads["tiles"] < reads["unshared"] and reads["shared_tiles"] > 0 and step.explain()
    assert np.array_equal(together, tessera.tree_attention(q, step, share=False))
    assert step.reads()["tiles"] == reads["unshared"]


def test_forks_copy_what_they_write(rng):
    tree, model = make(), Model(rng)
    a = tree.sequence()
    run(tree, model, rng, [a], [list(range(70))])
    b = a.fork()
    assert b.tokens == a.tokens
    run(tree, model, rng, [a, b], [[7], [8, 9]])  # both write into what was one block
    run(tree, model, rng, [b, a], [[1], [2]], window_size=(20, 0))
    assert a.tokens == [*range(70), 7, 2] and b.tokens == [*range(70), 8, 9, 1]
    b.truncate(66)
    run(tree, model, rng, [a, b], [[3], [4]])


def test_tenants_share_nothing_and_released_blocks_are_evicted(rng):
    tree, model = make(num_blocks=4), Model(rng)
    tokens = list(range(130))
    a = tree.sequence(tokens, "a")
    run(tree, model, rng, [a], [tokens])
    a.publish()
    assert len(tree.sequence(tokens, "b")) == 0 and len(tree.sequence(tokens, "a")) == 130
    with pytest.raises(MemoryError, match="blocks"):
        tree.step([tree.sequence()], [list(range(200))])
    assert tree.blocks()["referenced"] == 3
    del a
    assert tree.blocks() == {"free": 1, "cached": 3, "referenced": 0}
    run(tree, model, rng, [tree.sequence()], [list(range(500, 700))])


def test_layers_rotary_and_halves(rng):
    tree = make(layers=2, dtype="bfloat16")
    cos, sin = tables(100, 8)
    a = tree.sequence()
    step = tree.step([a], [list(range(40))])
    k, v = (rng.standard_normal((40, KV_HEADS, DIM)).astype(np.float16) for _ in "kv")
    q = rng.standard_normal((40, HEADS, DIM)).astype(np.float16)
    for layer in range(2):
        out = tessera.tree_attention(q, step, k * (layer + 1), v, layer, rotary_cos=cos, rotary_sin=sin)
        turned = [rotate(x, cos, sin, np.arange(40), False)[None] for x in (q, k * (layer + 1))]
        expected, _ = attention(*turned, v[None], Features(DIM**-0.5, True))
        assert out.dtype == np.float16 and worst(out, expected[0]) <= 4e-2


def test_a_step_is_refused_when_its_sequence_has_moved_on(rng):
    tree = make()
    a = tree.sequence()
    q, kv = np.zeros((1, HEADS, DIM), np.float32), np.zeros((1, KV_HEADS, DIM), np.float32)
    old = tree.step([a], [[1]])
    tree.step([a], [[2]])
    for act in (lambda: tessera.tree_attention(q, old), lambda: old.append(kv, kv)):
        with pytest.raises(ValueError, match=r"sequences\[0\] has changed"):
            act()


@pytest.mark.parametrize(
    "act, error, text",
    [
        (lambda t, s: t.step([s, s], [[1], [2]]), ValueError, "twice"),
        (lambda t, s: t.step([s], [[1], [2]]), ValueError, "1 sequences and 2 lists"),
        (lambda t, s: t.step([make().sequence()], [[1]]), ValueError, "another tree"),
        (lambda t, s: t.step([3], [[1]]), TypeError, r"sequences\[0\] is a builtins.int"),
        (lambda t, s: t.step([s], [[1.5]]), TypeError, r"tokens\[0\] must be"),
        (lambda t, s: t.sequence([2**40]), ValueError, "int32"),
        (lambda t, s: s.truncate(1), ValueError, "length=1 must be from 0 to 0"),
        (lambda t, s: make(dtype="float16"), ValueError, "dtype='float16'"),
        (lambda t, s: make(num_blocks=0), ValueError, "num_blocks=0"),
        (lambda t, s: make(head_dim=12), (ValueError, NotImplementedError), "head_dim"),
        (lambda t, s: tessera.tree_attention(np.ones((2, 4, 32), np.float32), t.step([s], [[1]])), ValueError, "q has shape"),
        (lambda t, s: tessera.tree_attention(np.ones((1, 3, 32), np.float32), t.step([s], [[1]])), ValueError, "q has 3 heads"),
        (
            lambda t, s: tessera.tree_attention(np.ones((1, 4, 32), np.float32), t.step([s], [[1]]), layer=1),
            ValueError,
            "layer=1 must be from 0 to 0",
        ),
        (lambda t, s: t.step([s], [[1]]).append(np.ones((2, 2, 32)), np.ones((2, 2, 32))), TypeError, "k has dtype float64"),
    ],
)
def test_mistakes_are_named(act, error, text):
    tree = make()
    with pytest.raises(error, match=text):
        act(tree, tree.sequence())
