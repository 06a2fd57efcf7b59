"""Attention's forward and backward as plain functions over arrays, with Tessera's own conventions and no autograd."""

from typing import Any, Optional, Tuple

import numpy as np

from . import _check, _core, _native
from ._arrays import as_array, dtype_name, same_place, to_int32
from ._native import Call

Window = Tuple[int, int]


def _prepare(
    q: Any, k: Any, v: Any, softmax_scale: Optional[float], causal: bool, window_size: Window, softcap: float,
    alibi_slopes: Any, attn_mask: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: Optional[int],
    max_seqlen_k: Optional[int], seqused_k: Any, leftpad_k: Any, dropout_p: float, seed: int, offset: int,
) -> Tuple[Any, Any, Any, Call]:  # fmt: skip
    varlen = cu_seqlens_q is not None
    if varlen != (cu_seqlens_k is not None):
        raise ValueError("cu_seqlens_q and cu_seqlens_k must be given together")
    rank = 3 if varlen else 4
    layout = "(rows of all sequences, heads, head_dim)" if varlen else "(batch, seqlen, heads, head_dim)"
    q, k, v = _check.float_arrays("qkv", (q, k, v), rank, layout, True)
    _check.heads_and_dims(q, k, v, not varlen)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check.last_stride(x, name)
        if x.shape[-1] % 8 != 0:
            raise ValueError(f"{name} has head_dim {x.shape[-1]}; it must be a multiple of 8")
    left, right = _check.window(window_size)
    dropout_p = _check.dropout(dropout_p)
    call = Call(
        scale=_check.scale_of(softmax_scale, q.shape[-1]),
        causal=bool(causal),
        window_left=left,
        window_right=right,
        softcap=_check.softcap(softcap, dropout_p),
        dropout_p=dropout_p,
        seed=_check.length(seed, "seed"),
        offset=_check.length(offset, "offset"),
    )
    batch, rows, keys = q.shape[0], q.shape[-3], k.shape[-3]
    if varlen:
        batch = _check.batch_of(cu_seqlens_q)
        call.cu_seqlens_q = to_int32(cu_seqlens_q, "cu_seqlens_q", (batch + 1,), q)
        call.cu_seqlens_k = to_int32(cu_seqlens_k, "cu_seqlens_k", (batch + 1,), q)
        rows = call.max_seqlen_q = _longest(call.cu_seqlens_q, max_seqlen_q, "max_seqlen_q")
        keys = call.max_seqlen_k = _longest(call.cu_seqlens_k, max_seqlen_k, "max_seqlen_k")
    call.alibi_slopes = _check.alibi(alibi_slopes, batch, q.shape[-2], q)
    call.mask = _check.mask(attn_mask, q, (batch, q.shape[-2], rows, keys))
    call.seqused_k = to_int32(seqused_k, "seqused_k", (batch,), q)
    call.leftpad_k = to_int32(leftpad_k, "leftpad_k", (batch,), q)
    return q, k, v, call


def _longest(cu_seqlens: Any, given: Optional[int], name: str) -> int:
    if given is not None:
        return _check.length(given, name)
    values = [int(x) for x in cu_seqlens]
    return max([0] + [b - a for a, b in zip(values, values[1:])])


def alibi_slopes(heads: int) -> Any:
    """ALiBi's slopes (Press, Smith and Lewis, 2022), float32 (heads,), for any number of heads from 1 to 65536."""
    return np.array(_core.alibi_slopes(min(_check.length(heads, "heads"), 2**31 - 1)), dtype=np.float32)


def attention_forward(
    q: Any,
    k: Any,
    v: Any,
    *,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    attn_mask: Optional[Any] = None,
    cu_seqlens_q: Optional[Any] = None,
    cu_seqlens_k: Optional[Any] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    seqused_k: Optional[Any] = None,
    leftpad_k: Optional[Any] = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> Tuple[Any, Any]:
    """out and lse, the natural logarithm of each row's sum of exponentials.

    q: (batch, seqlen_q, H_q, head_dim), k: (batch, seqlen_k, H_k, head_dim), v: (batch, seqlen_k, H_k, v_head_dim), head
    dimensions multiples of 8 to 256, last dimension contiguous; or without the batch axis and with cu_seqlens, as in
    flash_attn_varlen_func(). Parameters mean what they mean in tessera.flash_attn; besides:

    attn_mask: broadcasts to (batch, H_q, seqlen_q, seqlen_k); bool (False hides) or a float that is added.
    seqused_k, leftpad_k: (batch,) integers; keys [leftpad_k[b], seqused_k[b]) of batch b count.
    dropout_p, seed, offset: the same three give the same mask, in backward too.

    Returns out (as q, with v's head_dim) and lse, float32, (batch, H_q, seqlen_q) or (H_q, rows). A row that sees nothing
    has out 0 and lse -inf. Errors as in tessera.flash_attn.
    """
    q, k, v, call = _prepare(
        q, k, v, softmax_scale, causal, window_size, softcap, alibi_slopes, attn_mask, cu_seqlens_q, cu_seqlens_k,
        max_seqlen_q, max_seqlen_k, seqused_k, leftpad_k, dropout_p, seed, offset,
    )  # fmt: skip
    return _native.forward(q, k, v, call)


def attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    attn_mask: Optional[Any] = None,
    cu_seqlens_q: Optional[Any] = None,
    cu_seqlens_k: Optional[Any] = None,
    max_seqlen_q: Optional[int] = None,
    max_seqlen_k: Optional[int] = None,
    seqused_k: Optional[Any] = None,
    leftpad_k: Optional[Any] = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> Tuple[Any, Any, Any]:
    """dq, dk and dv from dout, the gradient of out. `out` and `lse` are attention_forward()'s with the same arguments.

    Scores are recomputed; nothing of size seqlen_q x seqlen_k is stored. Deterministic. Keys that no row sees get 0.
    """
    q, k, v, call = _prepare(
        q, k, v, softmax_scale, causal, window_size, softcap, alibi_slopes, attn_mask, cu_seqlens_q, cu_seqlens_k,
        max_seqlen_q, max_seqlen_k, seqused_k, leftpad_k, dropout_p, seed, offset,
    )  # fmt: skip
    layout = "(batch, seqlen, heads, head_dim)" if q.ndim == 4 else "(rows of all sequences, heads, head_dim)"
    dout, out, _ = _check.float_arrays(("dout", "out", "q"), (dout, out, q), q.ndim, layout, True)
    for name, x in (("dout", dout), ("out", out)):
        _check.last_stride(x, name)
        _check.shape(x, tuple(q.shape[:-1]) + (v.shape[-1],), name)
    lse = as_array(lse, "lse", True)
    same_place(lse, "lse", q, "q")
    if dtype_name(lse) != "float32":
        raise TypeError(f"lse has dtype {dtype_name(lse)}; float32 is needed")
    _check.shape(lse, _native.lse_shape(q, q.ndim == 3), "lse")
    return _native.backward(dout, q, k, v, out, lse, call)
