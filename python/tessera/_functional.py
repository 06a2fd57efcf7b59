"""Attention over checked arrays of either kind, for the public functions: padding, autograd, dropout's seeds."""

from dataclasses import replace
from typing import Any, Optional, Tuple

import numpy as np

from . import _check, _core, _native
from ._arrays import is_tensor, pad_last, to_int32
from ._native import Call

_generator = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Seeds the dropout of calls on NumPy arrays. Calls on PyTorch tensors draw from torch's own generator."""
    global _generator
    _generator = np.random.default_rng(seed)


def attend(q: Any, k: Any, v: Any, call: Call) -> Tuple[Any, Any]:
    """out and lse (-inf where a row sees nothing); head dimensions that are no multiple of 8 are padded with zeros.

    Fills call.seed and call.offset when there is dropout.
    """
    v_dim = v.shape[-1]
    q, k = (pad_last(x, -(-x.shape[-1] // 8) * 8) for x in (q, k))
    v = pad_last(v, -(-v_dim // 8) * 8)
    if is_tensor(q):
        from . import _torch

        out, lse = _torch.attend(q, k, v, call)
    else:
        if call.dropout_p > 0.0:
            call.seed, call.offset = (int(word) for word in _generator.integers(0, 2**63, 2))
        out, lse = _native.forward(q, k, v, call)
    return out if v_dim == v.shape[-1] else out[..., :v_dim], lse


def flash_call(
    q: Any, batch: int, dropout_p: float, softmax_scale: Optional[float], causal: bool, window_size: Tuple[int, int],
    softcap: float, alibi_slopes: Any,
) -> Call:  # fmt: skip
    """The options that all of flash-attn's functions have, checked. q: (..., heads, head_dim)."""
    dropout_p = _check.dropout(dropout_p)
    left, right = _check.window(window_size)
    return Call(
        scale=_check.scale_of(softmax_scale, q.shape[-1]),
        causal=bool(causal),
        window_left=left,
        window_right=right,
        softcap=_check.softcap(softcap, dropout_p),
        alibi_slopes=_check.alibi(alibi_slopes, batch, q.shape[-2], q),
        dropout_p=dropout_p,
    )


def set_varlen(
    call: Call, q: Any, batch: int, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int
) -> None:
    """The sequences of a varlen call, checked."""
    call.cu_seqlens_q = to_int32(cu_seqlens_q, "cu_seqlens_q", (batch + 1,), q)
    call.cu_seqlens_k = to_int32(cu_seqlens_k, "cu_seqlens_k", (batch + 1,), q)
    call.max_seqlen_q = _check.length(max_seqlen_q, "max_seqlen_q")
    call.max_seqlen_k = _check.length(max_seqlen_k, "max_seqlen_k")


def flash_lse(lse: Any) -> Any:
    """flash-attn's convention: +inf for a row that sees nothing."""
    if is_tensor(lse):
        return lse.masked_fill(lse == float("-inf"), float("inf"))
    lse[lse == -np.inf] = np.inf
    return lse


def probabilities(q: Any, k: Any, call: Call) -> Any:
    """flash-attn's S_dmask: the softmax of every row, negative where dropout dropped it; an empty array without dropout.

    (batch, heads, seqlen_q, seqlen_k), or (batch, heads, max_seqlen_q, max_seqlen_k) with 0 behind a sequence's end. For
    tests: it is the matrix that attention otherwise never stores. flash-attn's own is scaled otherwise and padded.
    """
    if call.dropout_p == 0.0:
        return q.new_empty((0,)) if is_tensor(q) else np.empty((0,), dtype=q.dtype)
    if is_tensor(q):
        import torch

        plain = replace(
            call,
            alibi_slopes=_numpy(call.alibi_slopes),
            cu_seqlens_q=_numpy(call.cu_seqlens_q),
            cu_seqlens_k=_numpy(call.cu_seqlens_k),
            seed=int(call.seed),
            offset=int(call.offset),
        )
        p = _probabilities(_numpy(q.float()), _numpy(k.float()), plain)
        return torch.from_numpy(p).to(device=q.device, dtype=q.dtype)
    return _probabilities(q.astype(np.float32), k.astype(np.float32), call).astype(q.dtype)


def _numpy(x: Optional[Any]) -> Optional[Any]:
    return None if x is None else x.detach().cpu().numpy()


def _probabilities(q: Any, k: Any, call: Call) -> Any:
    if call.cu_seqlens_q is None or call.cu_seqlens_k is None:
        q_parts, k_parts = list(q), list(k)
        rows, keys = q.shape[1], k.shape[1]
    else:
        q_parts, k_parts = np.split(q, call.cu_seqlens_q[1:])[:-1], np.split(k, call.cu_seqlens_k[1:])[:-1]
        rows, keys = call.max_seqlen_q, call.max_seqlen_k
    heads = q.shape[-2]
    keep = np.empty((len(q_parts), heads, rows, keys), dtype=np.uint8)
    _core.dropout_mask(keep, call.dropout_p, call.seed, call.offset)
    out = np.zeros(keep.shape, dtype=np.float32)
    for b, (qb, kb) in enumerate(zip(q_parts, k_parts)):
        kb = np.repeat(kb, heads // kb.shape[-2], axis=-2)
        scores = call.scale * np.einsum("ihd,jhd->hij", qb, kb)
        i = np.arange(qb.shape[0])[:, None] + kb.shape[0] - qb.shape[0]
        j = np.arange(kb.shape[0])[None, :]
        if call.alibi_slopes is not None:
            slopes = call.alibi_slopes if call.alibi_slopes.ndim == 1 else call.alibi_slopes[b]
            scores = scores - slopes[:, None, None] * np.abs(i - j)
        seen = np.ones(scores.shape[1:], dtype=bool)
        if call.causal:
            seen &= j <= i
        if call.window_left >= 0:
            seen &= j >= i - call.window_left
        if call.window_right >= 0:
            seen &= j <= i + call.window_right
        scores = np.where(seen, scores, -np.inf)
        with np.errstate(invalid="ignore", divide="ignore"):
            p = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
            p = np.where(seen, p / p.sum(axis=-1, keepdims=True), 0.0)
        out[b, :, : p.shape[1], : p.shape[2]] = p
    return np.where(keep == 1, out, -out)
