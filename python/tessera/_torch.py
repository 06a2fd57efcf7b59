"""PyTorch: the kernels as custom operators with fake implementations and gradients, so autograd and torch.compile work.

torch.ops.tessera.attention and attention_backward; imported only when a caller passes a tensor.
"""

# No `from __future__ import annotations`: torch reads the annotations as objects.
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from . import _native, kvcache, merge, rotary
from ._arrays import contiguous_last


def _call(
    mask: Optional[Tensor],
    alibi_slopes: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    seqused_k: Optional[Tensor],
    leftpad_k: Optional[Tensor],
    rng: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    dropout_p: float,
) -> _native.Call:
    seed, offset = (0, 0) if rng is None else (int(word) for word in rng.tolist())
    return _native.Call(
        scale,
        causal,
        window_left,
        window_right,
        softcap,
        mask,
        alibi_slopes,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        seqused_k,
        leftpad_k,
        dropout_p,
        seed,
        offset,
    )


@torch.library.custom_op("tessera::attention", mutates_args=(), device_types=("cpu", "cuda"))
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],
    alibi_slopes: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    seqused_k: Optional[Tensor],
    leftpad_k: Optional[Tensor],
    rng: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    dropout_p: float,
) -> Tuple[Tensor, Tensor]:
    call = _call(
        mask, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k, rng, max_seqlen_q, max_seqlen_k,
        scale, causal, window_left, window_right, softcap, dropout_p,
    )  # fmt: skip
    return _native.forward(q, k, v, call)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tuple[Tensor, Tensor]:
    out = q.new_empty(tuple(q.shape[:-1]) + (v.shape[-1],))
    lse = q.new_empty(_native.lse_shape(q, rest[2] is not None), dtype=torch.float32)
    return out, lse


@torch.library.custom_op("tessera::attention_backward", mutates_args=(), device_types=("cpu", "cuda"))
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Optional[Tensor],
    alibi_slopes: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    seqused_k: Optional[Tensor],
    leftpad_k: Optional[Tensor],
    rng: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    dropout_p: float,
) -> Tuple[Tensor, Tensor, Tensor]:
    call = _call(
        mask, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k, rng, max_seqlen_q, max_seqlen_k,
        scale, causal, window_left, window_right, softcap, dropout_p,
    )  # fmt: skip
    return _native.backward(contiguous_last(dout), q, k, v, contiguous_last(out), lse.contiguous(), call)


@attention_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:10], *output)
    ctx.scalars = inputs[10:]


def _backward(ctx: Any, dout: Tensor, _dlse: Optional[Tensor]) -> Tuple[Any, ...]:
    q, k, v, *tensors, out, lse = ctx.saved_tensors
    grads = torch.ops.tessera.attention_backward(dout, q, k, v, out, lse, *tensors, *ctx.scalars)
    wanted = (grad if need else None for grad, need in zip(grads, ctx.needs_input_grad))
    return (*wanted, *(None,) * (len(tensors) + len(ctx.scalars)))


torch.library.register_autograd("tessera::attention", _backward, setup_context=_setup_context)


@torch.library.custom_op("tessera::attend_cache", mutates_args=("k_cache", "v_cache"), device_types=("cpu", "cuda"))
def _attend_cache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Optional[Tensor],
    v: Optional[Tensor],
    cos: Optional[Tensor],
    sin: Optional[Tensor],
    seqlens: Tensor,
    batch_idx: Optional[Tensor],
    block_table: Optional[Tensor],
    alibi_slopes: Optional[Tensor],
    leftpad_k: Optional[Tensor],
    cu_seqlens_q: Optional[Tensor],
    cu_seqlens_k: Optional[Tensor],
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    interleaved: bool,
) -> Tuple[Tensor, Tensor]:
    call = _call(
        None, alibi_slopes, cu_seqlens_q, cu_seqlens_k, None, leftpad_k, None, max_seqlen_q, max_seqlen_k,
        scale, causal, window_left, window_right, softcap, 0.0,
    )  # fmt: skip
    return kvcache.attend_cache(q, k_cache, v_cache, k, v, cos, sin, seqlens, batch_idx, block_table, call, interleaved)


@_attend_cache.register_fake
def _(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> Tuple[Tensor, Tensor]:
    lse = q.new_empty(_native.lse_shape(q, rest[9] is not None), dtype=torch.float32)
    return q.new_empty(tuple(q.shape[:-1]) + (v_cache.shape[-1],)), lse


def attend_cache(arrays: Tuple[Any, ...], call: _native.Call, interleaved: bool) -> Tuple[Tensor, Tensor]:
    """kvcache.attend_cache() as an operator that says what it writes. No gradients."""
    with torch.no_grad():
        out, lse = torch.ops.tessera.attend_cache(
            *(None if x is None else x.detach() for x in arrays), call.alibi_slopes, call.leftpad_k,
            call.cu_seqlens_q, call.cu_seqlens_k, call.max_seqlen_q, call.max_seqlen_k, call.scale, call.causal,
            call.window_left, call.window_right, call.softcap, interleaved,
        )  # fmt: skip
    return out, lse


@torch.library.custom_op("tessera::rotary", mutates_args=(), device_types=("cpu", "cuda"))
def _rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    offset: int,
    offsets: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    backward: bool,
) -> Tensor:
    out = x.new_empty(x.shape) if cu_seqlens is None else x.clone(memory_format=torch.contiguous_format)
    rotary.rotate(x, out, cos, sin, interleaved, offset, offsets, cu_seqlens, backward)
    return out


@_rotary.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("tessera::rotary_", mutates_args=("x",), device_types=("cpu", "cuda"))
def _rotary_(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    offset: int,
    offsets: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
) -> None:
    rotary.rotate(x, x, cos, sin, interleaved, offset, offsets, cu_seqlens, False)


def _rotary_setup(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, interleaved, offset, offsets, cu_seqlens, backward = inputs
    ctx.save_for_backward(cos, sin, offsets, cu_seqlens)
    ctx.scalars = interleaved, offset, backward


def _rotary_backward(ctx: Any, dout: Tensor) -> Tuple[Any, ...]:
    cos, sin, offsets, cu_seqlens = ctx.saved_tensors
    interleaved, offset, backward = ctx.scalars
    dx = torch.ops.tessera.rotary(contiguous_last(dout), cos, sin, interleaved, offset, offsets, cu_seqlens, not backward)
    return (dx, *(None,) * 7)


torch.library.register_autograd("tessera::rotary", _rotary_backward, setup_context=_rotary_setup)


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inplace: bool, offset: int, offsets: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
) -> Tensor:  # fmt: skip
    """x rotated, with a gradient for x."""
    if not inplace:
        return torch.ops.tessera.rotary(contiguous_last(x), cos, sin, interleaved, offset, offsets, cu_seqlens, False)
    if x.requires_grad and torch.is_grad_enabled():
        return x.copy_(torch.ops.tessera.rotary(x, cos, sin, interleaved, offset, offsets, cu_seqlens, False))
    torch.ops.tessera.rotary_(x, cos, sin, interleaved, offset, offsets, cu_seqlens)
    return x


@torch.library.custom_op("tessera::merge_states", mutates_args=(), device_types=("cpu", "cuda"))
def merge_states(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
    return merge.merge_arrays(outs, lses)


@merge_states.register_fake
def _(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
    return outs[0].new_empty(outs[0].shape), lses[0].new_empty(lses[0].shape)


def attend(q: Tensor, k: Tensor, v: Tensor, call: _native.Call) -> Tuple[Tensor, Tensor]:
    """out, with gradients for q, k and v, and lse without one. Dropout draws its seed from torch's generator."""
    if call.dropout_p > 0.0 and q.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("dropout_p must be 0 while a CUDA graph is captured: every replay would drop the same entries")
    rng = torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64) if call.dropout_p > 0.0 else None
    if rng is not None:
        call.seed, call.offset = rng
    out, lse = torch.ops.tessera.attention(
        q, k, v, call.mask, call.alibi_slopes, call.cu_seqlens_q, call.cu_seqlens_k, call.seqused_k, call.leftpad_k,
        rng, call.max_seqlen_q, call.max_seqlen_k, call.scale, call.causal, call.window_left, call.window_right,
        call.softcap, call.dropout_p,
    )  # fmt: skip
    return out, lse.detach()
