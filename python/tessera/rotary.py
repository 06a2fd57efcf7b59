"""Rotary position embedding with flash-attn's functions."""

from typing import Any, Optional, Union

import numpy as np

from . import _check, _core
from ._arrays import contiguous_last, current_stream, dtype_name, empty, is_tensor, raw, same_place, to_int32

_LAYOUT = "(batch, seqlen, heads, head_dim)"


def rotate(
    x: Any, out: Any, cos: Any, sin: Any, interleaved: bool, offset: int, offsets: Any, cu_seqlens: Any, backward: bool
) -> None:
    """One call of the C++ code over checked arrays; out may be x."""
    _core.rotary(
        raw(x), raw(out), raw(cos), raw(sin), dtype_name(x), dtype_name(cos), interleaved, backward, offset,
        raw(offsets), raw(cu_seqlens), *current_stream(x),
    )  # fmt: skip


def apply_rotary_emb(
    x: Any,
    cos: Any,
    sin: Any,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: Union[int, Any] = 0,
    cu_seqlens: Optional[Any] = None,
    max_seqlen: Optional[int] = None,
) -> Any:
    """Rotates the first rotary_dim elements of every head of x; the others pass unchanged.

    x: (batch, seqlen, heads, head_dim), or with cu_seqlens (batch + 1,) (rows of all sequences, heads, head_dim).
    cos, sin: (positions, rotary_dim / 2), of any float dtype; rotary_dim <= head_dim.
    interleaved: pairs (0, 1), (2, 3)... (GPT-J); else halves (NeoX, Llama): (i, i + rotary_dim / 2).
    inplace: writes into x, whose last dimension must be contiguous, and returns it.
    seqlen_offsets: an int or (batch,) integers; row t of sequence b stands at position seqlen_offsets[b] + t, which must lie
        in the table.
    max_seqlen: taken for compatibility.

    Under PyTorch there is a gradient for x. Errors as in tessera.flash_attn.
    """
    varlen = cu_seqlens is not None
    layout = "(rows of all sequences, heads, head_dim)" if varlen else _LAYOUT
    (x,) = _check.float_arrays(("x",), (x,), 3 if varlen else 4, layout, True)
    cos, sin = _check.float_arrays(("cos", "sin"), (cos, sin), 2, "(positions, rotary_dim / 2)", True)
    if is_tensor(cos) != is_tensor(x):
        raise TypeError("cos and x must be of one kind, tensors or other arrays")
    same_place(cos, "cos", x, "x")
    _check.shape(sin, cos.shape, "sin")
    if not 1 <= cos.shape[1] <= x.shape[-1] // 2:
        raise ValueError(f"cos has {cos.shape[1]} columns; it must have 1 to half of x's head_dim, {x.shape[-1] // 2}")
    batch = _check.batch_of(cu_seqlens, "cu_seqlens") if varlen else x.shape[0]
    cu_seqlens = to_int32(cu_seqlens, "cu_seqlens", (batch + 1,), x)
    offset, offsets = 0, None
    if isinstance(seqlen_offsets, (int, np.integer)):
        offset = _check.length(seqlen_offsets, "seqlen_offsets")
    else:
        offsets = to_int32(seqlen_offsets, "seqlen_offsets", (batch,), x)
    if inplace:
        _check.last_stride(x, "x")
        _check.writable(x, "x")
    if is_tensor(x):
        from . import _torch

        return _torch.rotate(x, cos.contiguous(), sin.contiguous(), bool(interleaved), inplace, offset, offsets, cu_seqlens)
    x = contiguous_last(x)
    out = x if inplace else empty(x, x.shape)
    if varlen and not inplace:
        out[...] = x  # rows behind the last sequence
    cos, sin = np.ascontiguousarray(cos), np.ascontiguousarray(sin)
    rotate(x, out, cos, sin, bool(interleaved), offset, offsets, cu_seqlens, False)
    return out


def apply_rotary_emb_qkv_(
    qkv: Any,
    cos: Any,
    sin: Any,
    cos_k: Optional[Any] = None,
    sin_k: Optional[Any] = None,
    interleaved: bool = False,
    seqlen_offsets: Union[int, Any] = 0,
    num_heads_q: Optional[int] = None,
) -> Any:
    """apply_rotary_emb() of q and k of a packed array, in place; returns it.

    qkv: (batch, seqlen, 3, heads, head_dim), or with num_heads_q (batch, seqlen, H_q + 2 H_k, head_dim). cos_k and sin_k
    rotate k; None: as q.
    """
    if getattr(qkv, "ndim", 5) == 5:
        (qkv,) = _check.float_arrays(("qkv",), (qkv,), 5, "(batch, seqlen, 3, heads, head_dim)", True)
        if qkv.shape[2] != 3:
            raise ValueError(f"qkv has {qkv.shape[2]} in dimension 2; it must be 3")
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    else:
        (qkv,) = _check.float_arrays(("qkv",), (qkv,), 4, "(batch, seqlen, H_q + 2 H_k, head_dim)", True)
        if num_heads_q is None:
            raise ValueError("num_heads_q is None; it is needed when qkv has 4 dimensions")
        heads = _check.length(num_heads_q, "num_heads_q")
        kv_heads, rest = divmod(qkv.shape[2] - heads, 2)
        if rest != 0 or kv_heads < 1:
            raise ValueError(f"num_heads_q={heads} leaves {qkv.shape[2] - heads} heads of qkv; they must be 2 H_k")
        q, k = qkv[:, :, :heads], qkv[:, :, heads : heads + kv_heads]
    apply_rotary_emb(q, cos, sin, interleaved, True, seqlen_offsets)
    cos_k, sin_k = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
    apply_rotary_emb(k, cos_k, sin_k, interleaved, True, seqlen_offsets)
    return qkv


def apply_rotary_emb_kv_(kv: Any, cos: Any, sin: Any, interleaved: bool = False, seqlen_offsets: Union[int, Any] = 0) -> Any:
    """apply_rotary_emb() of k of a packed (batch, seqlen, 2, heads, head_dim), in place; returns it."""
    (kv,) = _check.float_arrays(("kv",), (kv,), 5, "(batch, seqlen, 2, heads, head_dim)", True)
    if kv.shape[2] != 2:
        raise ValueError(f"kv has {kv.shape[2]} in dimension 2; it must be 2")
    apply_rotary_emb(kv[:, :, 0], cos, sin, interleaved, True, seqlen_offsets)
    return kv
