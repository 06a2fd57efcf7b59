"""Attention by its definition, in double, one batch and head at a time. Shares no code with tessera."""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np


@dataclass
class Features:
    """Masks and scores of one problem; arrays in NumPy, as flash-attn's arguments mean them."""

    scale: float
    causal: bool = False
    window: Tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: Optional[Any] = None  # (batch, heads)
    bias: Optional[Any] = None  # (batch, heads, rows, keys), added; -inf hides
    first: Optional[Any] = None  # (batch,) keys at the front that nothing sees
    keys: Optional[Any] = None  # (batch,) keys in use
    keep: Optional[Any] = None  # (batch, heads, rows, keys): what a probability is multiplied by


def visible(rows: int, keys: int, f: Features, batch: int) -> Any:
    i = np.arange(rows)[:, None] + keys - rows
    j = np.arange(keys)[None, :]
    seen = np.ones((rows, keys), bool)
    if f.causal:
        seen &= j <= i
    if f.window[0] >= 0:
        seen &= j >= i - f.window[0]
    if f.window[1] >= 0:
        seen &= j <= i + f.window[1]
    if f.first is not None:
        seen &= j >= f.first[batch]
    return seen


def attention(q: Any, k: Any, v: Any, f: Features, dout: Optional[Any] = None) -> Tuple[Any, ...]:
    """out (batch, rows, heads, dim), lse (batch, heads, rows; -inf for an empty row), and dq, dk, dv with dout."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, rows, heads, _ = q.shape
    group = heads // k.shape[2]
    out = np.zeros(q.shape[:3] + (v.shape[3],))
    lse = np.full((batch, heads, rows), -np.inf)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b in range(batch):
        keys = k.shape[1] if f.keys is None else int(f.keys[b])
        seen = visible(rows, keys, f, b)
        distance = np.abs(np.arange(rows)[:, None] + keys - rows - np.arange(keys)[None, :])
        for h in range(heads):
            qh, kh, vh = q[b, :, h], k[b, :keys, h // group], v[b, :keys, h // group]
            scores = f.scale * (qh @ kh.T)
            slope = np.ones_like(scores)
            if f.softcap > 0:
                bent = np.tanh(scores / f.softcap)
                scores, slope = f.softcap * bent, 1 - bent * bent
            if f.alibi is not None:
                scores = scores - f.alibi[b, h] * distance
            if f.bias is not None:
                scores = scores + np.asarray(f.bias, np.float64)[b, h, :, :keys]
            scores = np.where(seen, scores, -np.inf)
            top = scores.max(axis=1, initial=-np.inf)
            some = np.isfinite(top)
            p = np.exp(scores - np.where(some, top, 0.0)[:, None])
            total = p.sum(axis=1)
            p = p / np.where(total > 0, total, 1.0)[:, None]
            with np.errstate(divide="ignore"):
                lse[b, h] = np.where(some, top + np.log(total), -np.inf)
            keep = np.ones_like(p) if f.keep is None else f.keep[b, h, :, :keys]
            out[b, :, h] = (p * keep) @ vh
            if dout is None:
                continue
            do = np.asarray(dout, np.float64)[b, :, h]
            dp = (do @ vh.T) * keep
            ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) * slope * f.scale
            dq[b, :, h] = ds @ kh
            dk[b, :keys, h // group] += ds.T @ qh
            dv[b, :keys, h // group] += (p * keep).T @ do
    return (out, lse) if dout is None else (out, lse, dq, dk, dv)


def worst(a: Any, b: Any) -> float:
    """The largest difference, infinite for a NaN."""
    if np.size(b) == 0:
        assert np.shape(a) == np.shape(b)
        return 0.0
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return float("inf") if np.isnan(difference).any() else float(difference.max())


def naive_float32(q: Any, k: Any, v: Any, f: Features) -> Any:
    """The plain form in float32, whose error is the measure of a kernel's error."""
    q, k, v = (np.asarray(x, np.float32) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    scores = np.float32(f.scale) * np.einsum("bihd,bjhd->bhij", q, np.repeat(k, group, 2))
    scores = np.where(visible(q.shape[1], k.shape[1], f, 0), scores, np.float32(-np.inf))
    with np.errstate(invalid="ignore"):
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p = np.nan_to_num(p / p.sum(-1, keepdims=True))
    return np.einsum("bhij,bjhd->bihd", p, np.repeat(v, group, 2))
