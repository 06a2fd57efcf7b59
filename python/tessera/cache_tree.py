"""Decode over the prefix tree of a paged cache that the caller owns: blocks that several sequences begin with are read once.

plan = tessera.CacheTreePlan(32, k_cache, v_cache, table, lengths, seqlen_new=1)      # once a step, on the host
out = plan.attend(q, k_cache, v_cache, k, v, cache_seqlens=lengths_on_gpu, block_table=table_on_gpu)       # every layer
"""

from typing import Any, Dict, Optional, Tuple, Union

import numpy as np

from . import _check, _core
from ._arrays import contiguous_last, describe, dtype_name, empty, is_tensor, place, raw, to_int32
from ._functional import flash_lse
from ._native import Call, lse_shape, options_of
from .kvcache import _LAYOUT, _block_table, _int_vector, _rotary, cache_of

Window = Tuple[int, int]
_SHARING = {True: "when_it_pays", False: "never", "always": "always"}


def _on_host(x: Any, name: str, rank: int) -> Any:
    """Integers as contiguous int32 of the host; a tensor of a device is copied, which waits for the device."""
    values = np.asarray(x.detach().cpu() if is_tensor(x) else x)
    if values.dtype.kind not in "iu" and values.size:
        raise TypeError(f"{name} has dtype {values.dtype}; integers are needed")
    if values.ndim != rank:
        raise ValueError(f"{name} has shape {values.shape}; it must have {rank} dimension{'s' if rank > 1 else ''}")
    if values.size and not -(2**31) <= int(values.min()) <= int(values.max()) < 2**31:
        raise ValueError(f"{name} holds a number that int32 cannot")
    return np.ascontiguousarray(values, dtype=np.int32)


def _lengths(cache_seqlens: Any, batch: int) -> Any:
    """(batch,) int32 of the host."""
    if isinstance(cache_seqlens, (int, np.integer)):
        return np.full((batch,), min(_check.length(cache_seqlens, "cache_seqlens"), 2**31 - 1), dtype=np.int32)
    lengths = _on_host(cache_seqlens, "cache_seqlens", 1)
    _check.shape(lengths, (batch,), "cache_seqlens")
    return lengths


class CacheTreePlan:
    """How one query token of each sequence meets the blocks of a paged cache. Made once a step, used for every layer.

    heads: query heads, a multiple of the caches' heads.
    k_cache, v_cache: (num_blocks, block_size, H_k, head_dim), any layer's: their shapes, dtype and device are the plan's.
    block_table: (batch, max_blocks) integers; cache_seqlens: an int or (batch,) integers, the keys that are there before the
        call. NumPy arrays, lists or tensors of the CPU; a CUDA tensor is copied to the host, which waits for the GPU.
    seqlen_new: tokens that each attend() appends to every sequence (k and v of attend()); usually 0 or 1.
    softmax_scale, window_size, softcap, alibi_slopes, cache_leftpad: as in flash_attn_with_kvcache, the last two on the
        caches' device.
    share: True: blocks that several sequences begin with are read once where a cost model says that it pays (explain()
        prints it); False: never; "always": wherever it can be. The bits are the same.
    reserve: tokens by which every sequence may grow before a new plan is needed. A captured CUDA graph that replays while
        lengths grow needs it; covers() says whether it still lasts.

    On CUDA tensors the plan is put into device memory on torch's current stream (never while a graph is captured), and must be
    kept as long as work or a graph with it may run. On the CPU every sequence walks its own blocks, as reads() and explain()
    say; PrefixTree shares there. No gradients.

    ValueError names the argument: a block id outside the cache (of a block that is read), a length outside its table, another
    shape or device; NotImplementedError what the device has no kernel for.
    """

    def __init__(
        self,
        heads: int,
        k_cache: Any,
        v_cache: Any,
        block_table: Any,
        cache_seqlens: Any,
        seqlen_new: int = 0,
        softmax_scale: Optional[float] = None,
        window_size: Window = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Optional[Any] = None,
        cache_leftpad: Optional[Any] = None,
        share: Union[bool, str] = True,
        reserve: int = 0,
    ) -> None:
        k_cache, v_cache = self._caches(k_cache, v_cache)
        table = _on_host(block_table, "block_table", 2)
        self.batch = int(table.shape[0])
        self.max_blocks = int(table.shape[1])
        lengths = _lengths(cache_seqlens, self.batch)
        self.heads = _check.length(heads, "heads")
        kv_heads, head_dim = k_cache.shape[2:]
        if kv_heads < 1 or not 1 <= self.heads < 2**31 or self.heads % kv_heads != 0:
            raise ValueError(f"heads={heads} must be a multiple of k_cache's {kv_heads} heads, at least 1")
        if share not in (True, False, "always"):
            raise ValueError(f"share={share!r} must be True, False or 'always'")
        self.seqlen_new = _check.length(seqlen_new, "seqlen_new")
        left, right = _check.window(window_size)
        self._call = Call(
            scale=_check.scale_of(softmax_scale, head_dim),
            window_left=left,
            window_right=right,
            softcap=_check.softcap(softcap, 0.0),
            alibi_slopes=_check.alibi(alibi_slopes, self.batch, self.heads, k_cache, "k_cache"),
            leftpad_k=to_int32(cache_leftpad, "cache_leftpad", (self.batch,), k_cache, "k_cache"),
        )
        self._like = tuple(k_cache.shape), tuple(v_cache.shape), dtype_name(k_cache), place(k_cache), is_tensor(k_cache)
        self._core = _core.CacheTreePlan(
            self.heads, kv_heads, head_dim, v_cache.shape[3], k_cache.shape[0], k_cache.shape[1], table, lengths,
            self.seqlen_new, _check.length(reserve, "reserve"), _SHARING[share], options_of(self._call, k_cache),
        )  # fmt: skip

    @staticmethod
    def _caches(k_cache: Any, v_cache: Any) -> Tuple[Any, Any]:
        layout = "(num_blocks, block_size, heads, head_dim)"
        k_cache, v_cache = _check.float_arrays(("k_cache", "v_cache"), (k_cache, v_cache), 4, layout, True)
        _check.shape(v_cache, tuple(k_cache.shape[:3]) + (v_cache.shape[3],), "v_cache")
        for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
            if x.shape[3] % 8 != 0 or not 8 <= x.shape[3] <= _check.MAX_HEAD_DIM:
                raise ValueError(f"{name} has head_dim {x.shape[3]}; it must be a multiple of 8 from 8 to {_check.MAX_HEAD_DIM}")
            _check.last_stride(x, name)
        return k_cache, v_cache

    def attend(
        self,
        q: Any,
        k_cache: Any,
        v_cache: Any,
        k: Optional[Any] = None,
        v: Optional[Any] = None,
        rotary_cos: Optional[Any] = None,
        rotary_sin: Optional[Any] = None,
        cache_seqlens: Optional[Union[int, Any]] = None,
        block_table: Optional[Any] = None,
        rotary_interleaved: bool = True,
        return_softmax_lse: bool = False,
    ) -> Any:
        """flash_attn_with_kvcache() of one layer by this plan: the same arguments, the same bits.

        q: (batch, 1, H_q, head_dim). k_cache, v_cache: as the plan's. k, v: (batch, seqlen_new, H_k, head_dim), written to the
        caches first, K rotated with rotary_cos and rotary_sin, and q too; None when seqlen_new is 0.
        block_table: (batch, max_blocks), what the plan was made from, where q is. cache_seqlens: an int or (batch,) integers
        where q is: the lengths before this call, now. What the plan does not cover (see covers()) is a ValueError for an int
        and on the CPU; for lengths in a CUDA tensor, which are not looked at, NaN in that sequence's out.

        Returns out (batch, 1, H_q, head_dim of v), or (out, softmax_lse) with softmax_lse of (batch, H_q, 1).
        """
        q, k_cache, v_cache = _check.float_arrays(("q", "k_cache", "v_cache"), (q, k_cache, v_cache), 4, _LAYOUT, True)
        k_shape, v_shape, dtype, where, of_torch = self._like
        if (dtype_name(q), place(q), is_tensor(q)) != (dtype, where, of_torch):
            raise ValueError(
                f"q is {describe(q)} of {dtype_name(q)} on {place(q)}; the plan is for {dtype} on {where}"
            )
        _check.shape(q, (self.batch, 1, self.heads, k_shape[3]), "q")
        _check.shape(k_cache, k_shape, "k_cache")
        _check.shape(v_cache, v_shape, "v_cache")
        for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
            _check.last_stride(x, name)
        if (k is None) != (v is None):
            raise ValueError("k and v must be given together")
        if (0 if k is None else 1) != min(self.seqlen_new, 1):
            raise ValueError(f"k is {'None' if k is None else 'given'}; the plan was made with seqlen_new={self.seqlen_new}")
        if k is None and rotary_cos is not None:
            raise ValueError("rotary_cos needs k and v")
        if cache_seqlens is None or block_table is None:
            raise ValueError(f"{'cache_seqlens' if cache_seqlens is None else 'block_table'} is None; a plan needs it")
        if k is not None:
            _, k, v = _check.float_arrays(("q", "k", "v"), (q, k, v), 4, _LAYOUT, True)
            for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
                _check.shape(new, (self.batch, self.seqlen_new) + tuple(cache.shape[2:]), name)
                _check.writable(cache, name + "_cache")
            k, v = contiguous_last(k), contiguous_last(v)
        if isinstance(cache_seqlens, (int, np.integer)):
            refusal = self._core.refusal(_lengths(cache_seqlens, self.batch))
            if refusal:
                raise ValueError(refusal)
        cos, sin = _rotary(rotary_cos, rotary_sin, q)
        table = _block_table(block_table, self.batch, q)
        _check.shape(table, (self.batch, self.max_blocks), "block_table")
        seqlens = _int_vector(cache_seqlens, 0, "cache_seqlens", self.batch, q)
        cache = cache_of(k_cache, v_cache, k, v, cos, sin, seqlens, None, table, bool(rotary_interleaved))
        q = contiguous_last(q)
        out = empty(q, tuple(q.shape[:-1]) + (v_shape[3],))
        lse = empty(q, lse_shape(q, False), "float32")
        self._core.attend(raw(q), cache, raw(out), raw(lse), options_of(self._call, q))
        return (out, flash_lse(lse)) if return_softmax_lse else out

    def covers(self, cache_seqlens: Any) -> bool:
        """Whether attend() with these lengths (an int or (batch,) integers, before the call) is what was planned.

        They may grow up to the planned length with the reserve, rounded up to a multiple of 256, never beyond the table, and
        shrink down to what sequences share (not at all with a window that hides keys). A CUDA tensor is copied to the host.
        """
        return not self._core.refusal(_lengths(cache_seqlens, self.batch))

    def explain(self) -> str:
        """What sharing saves and costs by the model, and how the work was laid out."""
        return self._core.explain()

    def reads(self) -> Dict[str, int]:
        """Pairs of K and V tiles (64 keys of one head) of a layer at the planned lengths: read, of those read once for several
        sequences, and what would be read if every sequence walked its own blocks."""
        return dict(zip(("tiles", "shared_tiles", "unshared"), self._core.reads()))
