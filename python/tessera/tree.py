"""A KV cache that is a prefix tree over blocks, and attention over it: what several sequences share is read once.

tree = tessera.PrefixTree(num_blocks=256, kv_heads=2, head_dim=64)
a = tree.sequence(tokens)              # takes over the longest prefix that is cached: len(a) tokens
step = tree.step([a], [tokens[len(a):]])
out = tessera.tree_attention(q, step, k=k, v=v)        # rows of the new tokens only
a.publish()                            # now other sequences find these tokens
b = a.fork()                           # the same blocks; written ones are copied first
"""

from typing import Any, Dict, List, Optional, Tuple
from typing import Sequence as SequenceOf

import numpy as np

from . import _check, _core
from ._arrays import as_array, contiguous_last, describe, dtype_name, empty, is_tensor, raw
from ._native import Call, options_of

BLOCK_TOKENS = 64


def _token_list(tokens: Any, name: str) -> List[int]:
    """Token ids as a list of int32."""
    values = np.asarray(tokens.detach() if is_tensor(tokens) else tokens)
    if values.size == 0:
        return []
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise TypeError(f"{name} must be a one-dimensional sequence of integers")
    if int(values.min()) < -(2**31) or int(values.max()) >= 2**31:
        raise ValueError(f"{name} holds an id that int32 cannot")
    return [int(value) for value in values]


class Sequence:
    """The tokens of one sequence whose keys and values a PrefixTree holds. PrefixTree.sequence() and fork() make them.

    Its blocks are freed, or kept for others if it was published, when the object goes.
    """

    def __init__(self, core: _core.Sequence) -> None:
        self._core = core

    def __len__(self) -> int:
        return self._core.length()

    @property
    def tokens(self) -> List[int]:
        """Its token ids, from position 0."""
        return self._core.tokens()

    def fork(self) -> "Sequence":
        """A second sequence with the same tokens. Nothing is copied until one of the two writes to a shared block."""
        return Sequence(self._core.fork())

    def publish(self) -> None:
        """Lets PrefixTree.sequence() find these tokens; call it when every layer has been appended. Invalidates steps."""
        self._core.publish()

    def truncate(self, length: int) -> None:
        """Forgets all tokens but the first `length`: rejected drafts. Invalidates steps."""
        self._core.truncate(_check.length(length, "length"))


class Step:
    """New tokens of some sequences. Row r of q, k and v belongs to them in the order of `sequences`.

    Valid until one of its sequences is stepped again, published or truncated.
    """

    def __init__(self, core: _core.Step, tree: "PrefixTree") -> None:
        self._core = core
        self._tree = tree

    @property
    def rows(self) -> int:
        """Tokens of all sequences in this step."""
        return self._core.rows()

    @property
    def positions(self) -> Any:
        """(rows,) int32: where each row stands in its sequence."""
        return np.array(self._core.positions(), dtype=np.int32)

    def append(
        self,
        k: Any,
        v: Any,
        layer: int = 0,
        rotary_cos: Optional[Any] = None,
        rotary_sin: Optional[Any] = None,
        rotary_interleaved: bool = False,
    ) -> None:
        """Writes K (rows, kv_heads, head_dim) and V of the rows, float32, float16 or bfloat16, rounded once to the cache's
        dtype. With rotary tables (positions, rotary_dim / 2), K is rotated at its positions first.
        """
        k, v = _check.float_arrays(("k", "v"), (k, v), 3, "(rows, kv_heads, head_dim)")
        tree = self._tree
        _check.shape(k, (self.rows, tree.kv_heads, tree.head_dim), "k")
        _check.shape(v, (self.rows, tree.kv_heads, tree.v_head_dim), "v")
        cos, sin, kind = _tables(rotary_cos, rotary_sin, tree.head_dim)
        k, v = contiguous_last(k), contiguous_last(v)
        self._core.append(_layer(layer), raw(k), raw(v), dtype_name(k), cos, sin, kind, bool(rotary_interleaved))

    def explain(self) -> str:
        """Which blocks the last tree_attention() read for several sequences at once, and why."""
        return self._core.explain()

    def reads(self) -> Dict[str, int]:
        """Pairs of K and V tiles of the last tree_attention(): read, of those read once for several sequences, and what
        would have been read had every sequence walked its own blocks."""
        return dict(zip(("tiles", "shared_tiles", "unshared"), self._core.reads()))


class PrefixTree:
    """Blocks of 64 tokens, found again by their tokens, shared by reference and read once for all who share them.

    num_blocks: what the cache can hold; memory is taken at once. kv_heads, head_dim, v_head_dim (None: head_dim), layers:
    of K and V; head dimensions are multiples of 8 to 256. dtype: as stored, "bfloat16" or "float32".
    prefix_caching=False: sequences share by fork() only.

    Not to be used by two Python threads at once: a call during another's computation raises RuntimeError.
    """

    def __init__(
        self,
        num_blocks: int,
        kv_heads: int,
        head_dim: int,
        v_head_dim: Optional[int] = None,
        layers: int = 1,
        dtype: str = "bfloat16",
        prefix_caching: bool = True,
    ) -> None:
        self.kv_heads = _size(kv_heads, "kv_heads")
        self.head_dim = _size(head_dim, "head_dim")
        self.v_head_dim = self.head_dim if v_head_dim is None else _size(v_head_dim, "v_head_dim")
        self.layers = _size(layers, "layers")
        self.num_blocks = _size(num_blocks, "num_blocks")
        if dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype={dtype!r} must be 'bfloat16' or 'float32'")
        self.dtype = dtype
        self._core = _core.Tree(
            self.num_blocks, self.kv_heads, self.head_dim, self.v_head_dim, self.layers, dtype, bool(prefix_caching)
        )

    def sequence(self, tokens: Any = (), tenant: str = "") -> Sequence:
        """A sequence that holds the longest prefix of `tokens` that was published for `tenant`; nothing else is shared
        between tenants. len() says how many tokens that is: compute the rest, by a step.
        """
        return Sequence(_core.make_sequence(self._core, _token_list(tokens, "tokens"), tenant))

    def step(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[Any]) -> Step:
        """Makes room for new tokens, tokens[i] for sequences[i]. MemoryError, and nothing changed, when blocks run out."""
        for i, sequence in enumerate(sequences):
            if not isinstance(sequence, Sequence):
                raise TypeError(f"sequences[{i}] is a {describe(sequence)}; a tessera Sequence is needed")
        lists = [_token_list(some, f"tokens[{i}]") for i, some in enumerate(tokens)]
        return Step(_core.Step(self._core, [sequence._core for sequence in sequences], lists), self)

    def blocks(self) -> Dict[str, int]:
        """How many blocks are free, cached (no sequence holds them, but their tokens can be found) and referenced."""
        return dict(zip(("free", "cached", "referenced"), self._core.blocks()))

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self._core.bytes()


def _size(value: Any, name: str) -> int:
    number = _check.length(value, name)
    if not 1 <= number < 2**31:
        raise ValueError(f"{name}={number} must be from 1 to 2147483647")
    return number


def _layer(layer: Any) -> int:
    number = _check.length(layer, "layer")
    if number >= 2**31:
        raise ValueError(f"layer={number} is too large")
    return number


def _tables(cos: Any, sin: Any, head_dim: int) -> Tuple[Any, Any, str]:
    if (cos is None) != (sin is None):
        raise ValueError("rotary_cos and rotary_sin must be given together")
    if cos is None:
        return None, None, "float32"
    cos, sin = _check.float_arrays(("rotary_cos", "rotary_sin"), (cos, sin), 2, "(positions, rotary_dim / 2)")
    _check.shape(sin, cos.shape, "rotary_sin")
    if not 1 <= cos.shape[1] <= head_dim // 2:
        raise ValueError(f"rotary_cos has {cos.shape[1]} columns; it must have 1 to half of head_dim, {head_dim // 2}")
    cos, sin = (x.contiguous() if is_tensor(x) else np.ascontiguousarray(x) for x in (cos, sin))
    return raw(cos), raw(sin), dtype_name(cos)


def tree_attention(
    q: Any,
    step: Step,
    k: Optional[Any] = None,
    v: Optional[Any] = None,
    layer: int = 0,
    softmax_scale: Optional[float] = None,
    causal: bool = True,
    window_size: Tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    rotary_cos: Optional[Any] = None,
    rotary_sin: Optional[Any] = None,
    rotary_interleaved: bool = False,
    share: bool = True,
    return_softmax_lse: bool = False,
) -> Any:
    """Attention of a step's rows over everything that their sequences hold in one layer. No gradients.

    q: (step.rows, H_q, head_dim), float32, float16 or bfloat16, whatever the cache's dtype. k, v: the rows' own keys and
    values, appended first (Step.append); None: they are there already. Rotary tables rotate k and q at their rows' positions.
    The other parameters as in tessera.flash_attn; alibi_slopes (H_q,).

    A block that several sequences of the step begin with is read once for all of them, their rows stacked, where that pays
    (Step.explain() says where); share=False makes every sequence walk its own blocks. The bits are the same.

    Returns out (rows, H_q, v_head_dim) of q's dtype, or (out, softmax_lse) with softmax_lse of (H_q, rows).
    """
    if not isinstance(step, Step):
        raise TypeError(f"step is a {describe(step)}; a tessera Step is needed")
    (q,) = _check.float_arrays(("q",), (q,), 3, "(rows, heads, head_dim)")
    tree = step._tree
    if tuple(q.shape) != (step.rows, q.shape[1], tree.head_dim):
        raise ValueError(f"q has shape {tuple(q.shape)}; it must be ({step.rows}, heads, {tree.head_dim})")
    if q.shape[1] < 1 or q.shape[1] % tree.kv_heads != 0:
        raise ValueError(f"q has {q.shape[1]} heads; they must be a multiple of the tree's {tree.kv_heads} kv heads")
    if (k is None) != (v is None):
        raise ValueError("k and v must be given together")
    left, right = _check.window(window_size)
    slopes = None if alibi_slopes is None else as_array(alibi_slopes, "alibi_slopes")
    call = Call(
        scale=_check.scale_of(softmax_scale, tree.head_dim),
        causal=bool(causal),
        window_left=left,
        window_right=right,
        softcap=_check.softcap(softcap, 0.0),
        alibi_slopes=_check.alibi(slopes, 1, q.shape[1], q),
    )
    cos, sin, kind = _tables(rotary_cos, rotary_sin, tree.head_dim)
    if k is not None:
        step.append(k, v, layer, rotary_cos, rotary_sin, rotary_interleaved)
    q = contiguous_last(q)
    out = empty(q, (q.shape[0], q.shape[1], tree.v_head_dim))
    lse = empty(q, (q.shape[1], q.shape[0]), "float32")
    options = options_of(call, q)
    step._core.attend(_layer(layer), raw(q), raw(out), raw(lse), cos, sin, kind, bool(rotary_interleaved), bool(share), options)
    if not return_softmax_lse:
        return out
    from ._functional import flash_lse

    return out, flash_lse(lse)
