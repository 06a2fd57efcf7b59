"""Checks of what callers pass, each naming the argument, its value and what is allowed.

They read shapes, dtypes and scalars only, so they also hold for torch.compile's fake tensors. What lies in the
elements (cu_seqlens that fall, block ids) is checked in C++ before anything is computed.
"""

import sys
from typing import Any, Optional, Sequence, Tuple

from ._arrays import FLOATS, as_array, describe, dtype_name, is_tensor, same_place

MAX_HEAD_DIM = 256


def float_arrays(
    names: Sequence[str], arrays: Sequence[Any], rank: int, layout: str, cuda: bool = False
) -> Tuple[Any, ...]:
    """Arrays of one family, one device, one float dtype and one rank. `layout` says the rank's meaning, for the error.

    cuda: whether the caller has kernels for CUDA tensors.
    """
    out = tuple(as_array(x, name, cuda) for name, x in zip(names, arrays))
    for name, x in zip(names, out):
        if is_tensor(x) != is_tensor(out[0]):
            raise TypeError(f"{name} is a {describe(x)} and {names[0]} a {describe(out[0])}; they must be of one kind")
        same_place(x, name, out[0], names[0])
        kind = dtype_name(x)
        if kind not in FLOATS:
            raise TypeError(f"{name} has dtype {kind}; float32, float16 and bfloat16 are supported")
        if kind != dtype_name(out[0]):
            raise TypeError(f"{name} has dtype {kind} and {names[0]} {dtype_name(out[0])}; they must agree")
        if x.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {rank} dimensions, {layout}")
    return out


def heads_and_dims(q: Any, k: Any, v: Any, same_batch: bool, names: Sequence[str] = ("q", "k", "v")) -> None:
    """k and v agree in all but the last dimension; heads divide; head dimensions match and are in range."""
    q_name, k_name, v_name = names
    if tuple(k.shape[:-1]) != tuple(v.shape[:-1]):
        raise ValueError(
            f"{v_name} has shape {tuple(v.shape)}; it must agree with {k_name}'s {tuple(k.shape)} in all but the last dimension"
        )
    if same_batch and k.shape[0] != q.shape[0]:
        raise ValueError(f"{k_name} has batch {k.shape[0]}; it must be {q_name}'s batch, {q.shape[0]}")
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if kv_heads < 1 or heads < 1 or heads % kv_heads != 0:
        raise ValueError(f"{q_name} has {heads} heads; they must be a multiple of {k_name}'s {kv_heads} heads, at least 1")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{k_name} has head_dim {k.shape[-1]}; it must be {q_name}'s head_dim, {q.shape[-1]}")
    for name, x in ((q_name, q), (v_name, v)):
        if not 1 <= x.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(f"{name} has head_dim {x.shape[-1]}; it must be from 1 to {MAX_HEAD_DIM}")


def shape(x: Any, expected: Sequence[int], name: str) -> None:
    """Exactly this shape."""
    if tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(expected)}")


def last_stride(x: Any, name: str) -> None:
    """A contiguous last dimension."""
    stride = x.stride(-1) if is_tensor(x) else x.strides[-1] // max(x.itemsize, 1)
    if stride != 1 and x.shape[-1] > 1 and 0 not in x.shape:
        raise ValueError(f"{name} has stride {stride} in its last dimension; it must be 1")


def writable(x: Any, name: str) -> None:
    """Memory that may be written."""
    if not is_tensor(x) and not x.flags.writeable:
        raise ValueError(f"{name} is read-only; it is written in place")


def scale_of(softmax_scale: Optional[float], head_dim: int, name: str = "softmax_scale") -> float:
    """1 / sqrt(head_dim) for None, else the caller's own, finite."""
    if softmax_scale is None:
        return float(head_dim**-0.5)
    return finite(softmax_scale, name)


def finite(value: Any, name: str) -> float:
    """A finite number as float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; a number is needed") from None
    if not -sys.float_info.max <= number <= sys.float_info.max:  # torch.compile cannot trace math.isfinite
        raise ValueError(f"{name}={number} must be finite")
    return number


def dropout(p: Any, name: str = "dropout_p") -> float:
    """A probability in [0, 1)."""
    number = finite(p, name)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name}={number} must be at least 0 and less than 1")
    return number


def softcap(value: Any, dropout_p: float) -> float:
    """At least 0 (0: off), and not together with dropout."""
    number = finite(value, "softcap")
    if number < 0.0:
        raise ValueError(f"softcap={number} must be at least 0 (0: off)")
    if number > 0.0 and dropout_p > 0.0:
        raise ValueError(f"softcap={number} and dropout_p={dropout_p}: softcap does not go together with dropout")
    return number


def window(window_size: Any) -> Tuple[int, int]:
    """(left, right), each -1 (no limit) or more."""
    try:
        left, right = (int(side) for side in window_size)
    except (TypeError, ValueError):
        raise TypeError(f"window_size is {window_size!r}; two integers (left, right) are needed") from None
    if left < -1 or right < -1:
        raise ValueError(f"window_size=({left}, {right}) must be at least -1 on both sides (-1: no limit)")
    return min(left, 2**31 - 1), min(right, 2**31 - 1)  # longer than any sequence


def length(value: Any, name: str) -> int:
    """An integer of at least 0."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}; an integer is needed")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}={value} must be at least 0 and less than 2^63")
    return int(value)


def batch_of(cu_seqlens: Any, name: str = "cu_seqlens_q") -> int:
    """The batch that cu_seqlens, (batch + 1,), describes."""
    if getattr(cu_seqlens, "ndim", 0) != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name} must have one dimension of batch + 1 elements")
    return int(cu_seqlens.shape[0]) - 1


def alibi(slopes: Any, batch: int, heads: int, like: Any, like_name: str = "q") -> Any:
    """None, or float32 slopes of shape (heads,) or (batch, heads), contiguous and of like's family."""
    if slopes is None:
        return None
    slopes = as_array(slopes, "alibi_slopes", True)
    if is_tensor(slopes) != is_tensor(like):
        raise TypeError(f"alibi_slopes is a {describe(slopes)} and {like_name} a {describe(like)}; they must be of one kind")
    same_place(slopes, "alibi_slopes", like, like_name)
    if dtype_name(slopes) != "float32":
        raise TypeError(f"alibi_slopes has dtype {dtype_name(slopes)}; float32 is needed")
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(f"alibi_slopes has shape {tuple(slopes.shape)}; it must be ({heads},) or ({batch}, {heads})")
    return slopes.contiguous() if is_tensor(slopes) else slopes.copy() if not slopes.flags.c_contiguous else slopes


def mask(attn_mask: Any, q: Any, shape: Sequence[int], name: str = "attn_mask") -> Any:
    """None, or a mask whose dimensions, counted from the last, are those of `shape` or 1."""
    if attn_mask is None:
        return None
    attn_mask = as_array(attn_mask, name, True)
    if is_tensor(attn_mask) != is_tensor(q):
        raise TypeError(f"{name} is a {describe(attn_mask)} and q a {describe(q)}; they must be of one kind")
    same_place(attn_mask, name, q, "q")
    if dtype_name(attn_mask) not in FLOATS + ("bool",):
        raise TypeError(f"{name} has dtype {dtype_name(attn_mask)}; bool, float32, float16 and bfloat16 are supported")
    given = tuple(attn_mask.shape)
    if len(given) > len(shape) or any(g not in (1, s) for g, s in zip(given[::-1], tuple(shape)[::-1])):
        raise ValueError(f"{name} has shape {given}; it must broadcast to {tuple(shape)}")
    if is_tensor(attn_mask) and attn_mask.requires_grad:
        raise ValueError(f"{name} requires a gradient, which is not computed; pass {name}.detach()")
    return attn_mask
