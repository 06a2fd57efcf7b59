"""Attention over a cache of keys and values that the caller owns: flash-attn's flash_attn_with_kvcache."""

from typing import Any, Optional, Tuple, Union

import numpy as np

from . import _check, _core
from ._arrays import contiguous_last, dtype_name, empty, is_tensor, on_cuda, pad_last, raw, same_place, to_int32
from ._functional import flash_call, flash_lse, set_varlen
from ._native import Call, lse_shape, options_of

Window = Tuple[int, int]
_LAYOUT = "(batch, seqlen, heads, head_dim)"


def cache_of(
    k_cache: Any, v_cache: Any, k: Any, v: Any, cos: Any, sin: Any, seqlens: Any, batch_idx: Any, block_table: Any,
    interleaved: bool,
) -> _core.Cache:  # fmt: skip
    """Checked arrays as the C++ module takes them."""
    cache = _core.Cache()
    if k is None:
        cache.k_read, cache.v_read = raw(k_cache), raw(v_cache)
    else:
        cache.k_cache, cache.v_cache, cache.k, cache.v = raw(k_cache), raw(v_cache), raw(k), raw(v)
    if cos is not None:
        cache.cos, cache.sin, cache.rotary_dtype, cache.interleaved = raw(cos), raw(sin), dtype_name(cos), interleaved
    cache.seqlens = raw(seqlens)
    if batch_idx is not None:
        cache.batch_idx = raw(batch_idx)
    if block_table is not None:
        cache.block_table = raw(block_table)
    return cache


def attend_cache(
    q: Any, k_cache: Any, v_cache: Any, k: Any, v: Any, cos: Any, sin: Any, seqlens: Any, batch_idx: Any,
    block_table: Any, call: Call, interleaved: bool,
) -> Tuple[Any, Any]:  # fmt: skip
    """One call of the C++ kernels over checked arrays. call.cu_seqlens_k, if given, is where seqlens come from."""
    if call.cu_seqlens_k is not None:
        seqlens = call.cu_seqlens_k[1:] - call.cu_seqlens_k[:-1]
        if not on_cuda(seqlens) and seqlens.shape[0] and int(seqlens.min()) < 0:
            raise ValueError(f"cu_seqlens_k={call.cu_seqlens_k.tolist()} must not fall")
    cache = cache_of(k_cache, v_cache, k, v, cos, sin, seqlens, batch_idx, block_table, interleaved)
    out = empty(q, tuple(q.shape[:-1]) + (v_cache.shape[-1],))
    lse = empty(q, lse_shape(q, call.cu_seqlens_q is not None), "float32")
    _core.attend_cache(raw(q), cache, raw(out), raw(lse), options_of(call, q))
    return out, lse


def _attend(
    q: Any, k_cache: Any, v_cache: Any, k: Any, v: Any, cos: Any, sin: Any, seqlens: Any, batch_idx: Any,
    block_table: Any, call: Call, interleaved: bool,
) -> Tuple[Any, Any]:  # fmt: skip
    """attend_cache() with head dimensions padded to multiples of 8, as an operator under PyTorch."""
    size, v_size = (-(-x.shape[-1] // 8) * 8 for x in (q, v_cache))
    caches = pad_last(k_cache, size), pad_last(v_cache, v_size)
    q = pad_last(q, size)
    if k is not None:
        k, v = pad_last(k, size), pad_last(v, v_size)
    arrays = (q, *caches, k, v, cos, sin, seqlens, batch_idx, block_table)
    if is_tensor(q):
        from . import _torch

        out, lse = _torch.attend_cache(arrays, call, interleaved)
    else:
        out, lse = attend_cache(*arrays, call, interleaved)
    if k is not None:
        for cache, padded in zip((k_cache, v_cache), caches):
            if cache is not padded:
                _assign(cache, padded[..., : cache.shape[-1]])
    return out[..., : v_cache.shape[-1]], lse


def _assign(to: Any, value: Any) -> None:
    if is_tensor(to):
        to.detach().copy_(value)
    else:
        to[...] = value


def _int_vector(x: Any, default: int, name: str, batch: int, like: Any) -> Any:
    if x is None or isinstance(x, (int, np.integer)):
        value = default if x is None else _check.length(x, name)
        full = np.full((batch,), min(value, 2**31 - 1), dtype=np.int32)
        if is_tensor(like):
            import torch

            return torch.full((batch,), min(value, 2**31 - 1), dtype=torch.int32, device=like.device)
        return full
    return to_int32(x, name, (batch,), like)


def _block_table(block_table: Any, batch: int, like: Any) -> Any:
    if block_table is None:
        return None
    if getattr(block_table, "ndim", 0) != 2:
        raise ValueError("block_table must have two dimensions, (batch, max_blocks)")
    return to_int32(block_table, "block_table", (batch, block_table.shape[1]), like)


def _rotary(cos: Any, sin: Any, q: Any) -> Tuple[Any, Any]:
    if (cos is None) != (sin is None):
        raise ValueError("rotary_cos and rotary_sin must be given together")
    if cos is None:
        return None, None
    cos, sin = _check.float_arrays(("rotary_cos", "rotary_sin"), (cos, sin), 2, "(positions, rotary_dim / 2)", True)
    if is_tensor(cos) != is_tensor(q):
        raise TypeError("rotary_cos and q must be of one kind, tensors or other arrays")
    same_place(cos, "rotary_cos", q, "q")
    _check.shape(sin, cos.shape, "rotary_sin")
    if not 1 <= cos.shape[1] <= q.shape[-1] // 2:
        raise ValueError(f"rotary_cos has {cos.shape[1]} columns; it must have 1 to half of head_dim, {q.shape[-1] // 2}")
    if is_tensor(cos):
        return cos.contiguous(), sin.contiguous()
    return np.ascontiguousarray(cos), np.ascontiguousarray(sin)


def flash_attn_with_kvcache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Optional[Any] = None,
    v: Optional[Any] = None,
    rotary_cos: Optional[Any] = None,
    rotary_sin: Optional[Any] = None,
    cache_seqlens: Optional[Union[int, Any]] = None,
    cache_batch_idx: Optional[Any] = None,
    cache_leftpad: Optional[Any] = None,
    block_table: Optional[Any] = None,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Optional[Any] = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Writes k and v into the cache, in place, behind what is there, then attends to all of it. No gradients.

    q: (batch, seqlen_q, H_q, head_dim).
    k_cache, v_cache: (batch_cache, capacity, H_k, head_dim), or with block_table (num_blocks, block_size, H_k, head_dim)
        of any block_size. The last dimension is contiguous, other strides are free; never copied (a head_dim that is no
        multiple of 8 is the exception: then both are copied, there and back).
    k, v: (batch, seqlen_new, H_k, head_dim), or None: nothing is appended.
    rotary_cos, rotary_sin: (positions, rotary_dim / 2), of any float dtype; only with k and v. New keys are rotated at
        positions cache_seqlens[b], cache_seqlens[b] + 1...; so is q when causal or a window is set, else all of q is
        rotated at cache_seqlens[b]. rotary_interleaved: pairs (0, 1), (2, 3)... (GPT-J) instead of halves (NeoX, Llama).
    cache_seqlens: keys in the cache before the call, an int or (batch,) integers; None: the cache is full. Needed with k.
    cache_batch_idx: (batch,) rows of the cache, distinct where keys are appended; not with block_table. None: 0, 1, 2...
    cache_leftpad: (batch,) keys at the front that nothing sees.
    block_table: (batch, max_blocks); key j of sequence b lies in slot j % block_size of block block_table[b, j // block_size].
    num_splits: taken for compatibility, an integer of at least 0. In flash-attn it says into how many parts the keys are
        cut; the cuts here lie at fixed positions, so that no such hint can change the bits, and the parts are divided
        over the threads as the lengths ask for.

    The other parameters as in tessera.flash_attn. Returns out (batch, seqlen_q, H_q, head_dim), or (out, softmax_lse) with
    softmax_lse of (batch, H_q, seqlen_q). Every argument is checked before the cache is written.
    """
    names = ("q", "k_cache", "v_cache")
    q, k_cache, v_cache = _check.float_arrays(names, (q, k_cache, v_cache), 4, _LAYOUT, True)
    _check.heads_and_dims(q, k_cache, v_cache, False, names)
    batch = q.shape[0]
    if block_table is not None and cache_batch_idx is not None:
        raise ValueError("cache_batch_idx must be None with a block_table")
    if block_table is None and cache_batch_idx is None and k_cache.shape[0] < batch:
        raise ValueError(f"k_cache has batch {k_cache.shape[0]}; it must be at least q's batch, {batch}")
    if (k is None) != (v is None):
        raise ValueError("k and v must be given together")
    if k is None and rotary_cos is not None:
        raise ValueError("rotary_cos needs k and v")
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check.last_stride(x, name)
    if k is not None:
        _, k, v = _check.float_arrays(("q", "k", "v"), (q, k, v), 4, _LAYOUT, True)
        if cache_seqlens is None:
            raise ValueError("cache_seqlens is None; it is needed with k and v")
        for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
            _check.shape(new, (batch, k.shape[1]) + tuple(cache.shape[2:]), name)
            _check.writable(cache, name + "_cache")
        k, v = contiguous_last(k), contiguous_last(v)
    _check.length(num_splits, "num_splits")
    call = flash_call(q, batch, 0.0, softmax_scale, causal, window_size, softcap, alibi_slopes)
    call.leftpad_k = to_int32(cache_leftpad, "cache_leftpad", (batch,), q)
    cos, sin = _rotary(rotary_cos, rotary_sin, q)
    table = _block_table(block_table, batch, q)
    capacity = k_cache.shape[1] * (1 if table is None else table.shape[1])
    out, lse = _attend(
        contiguous_last(q), k_cache, v_cache, k, v, cos, sin,
        _int_vector(cache_seqlens, capacity, "cache_seqlens", batch, q),
        to_int32(cache_batch_idx, "cache_batch_idx", (batch,), q), table, call, bool(rotary_interleaved),
    )  # fmt: skip
    return (out, flash_lse(lse)) if return_softmax_lse else out


def varlen_with_block_table(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    softmax_scale: Optional[float], causal: bool, window_size: Window, softcap: float, alibi_slopes: Any,
    return_attn_probs: bool, block_table: Any,
) -> Any:  # fmt: skip
    """flash_attn_varlen_func() over a paged cache."""
    (q,) = _check.float_arrays(("q",), (q,), 3, "(rows of all sequences, heads, head_dim)", True)
    k, v = _check.float_arrays(("k", "v"), (k, v), 4, "(num_blocks, block_size, heads, head_dim)", True)
    if dtype_name(k) != dtype_name(q) or is_tensor(k) != is_tensor(q):
        raise TypeError(f"k has dtype {dtype_name(k)} and q {dtype_name(q)}; they must agree, and be of one kind")
    same_place(k, "k", q, "q")
    _check.heads_and_dims(q, k, v, False)
    batch = _check.batch_of(cu_seqlens_q)
    call = flash_call(q, batch, 0.0, softmax_scale, causal, window_size, softcap, alibi_slopes)
    set_varlen(call, q, batch, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    for name, x in (("k", k), ("v", v)):
        _check.last_stride(x, name)
    seqlens = _int_vector(0, 0, "", batch, q)  # cu_seqlens_k says them
    table = _block_table(block_table, batch, q)
    out, lse = _attend(contiguous_last(q), k, v, None, None, None, None, seqlens, None, table, call, True)
    if not return_attn_probs:
        return out
    return out, flash_lse(lse), q.new_empty((0,)) if is_tensor(q) else np.empty((0,), dtype=q.dtype)
