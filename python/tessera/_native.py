"""One call of the C++ kernels over arrays that _check has passed. No autograd, no padding: what is here is exact."""

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

from . import _core
from ._arrays import current_stream, dtype_name, empty, on_cuda, raw


@dataclass
class Call:
    """What to compute, but for q, k and v. Arrays are of q's family; cu_seqlens make it varlen."""

    scale: float
    causal: bool = False
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    mask: Optional[Any] = None
    alibi_slopes: Optional[Any] = None
    cu_seqlens_q: Optional[Any] = None
    cu_seqlens_k: Optional[Any] = None
    max_seqlen_q: int = 0
    max_seqlen_k: int = 0
    seqused_k: Optional[Any] = None
    leftpad_k: Optional[Any] = None
    dropout_p: float = 0.0
    seed: int = 0
    offset: int = 0


def _set_stream(options: _core.Options, q: Any) -> None:
    """The call runs on torch's current stream of q's device."""
    import torch

    options.device, options.stream = current_stream(q)
    if torch.cuda.is_current_stream_capturing():
        kept: List[Any] = []

        def allocate(size: int) -> int:
            # Scratch of the graph's own memory, which lasts as long as the graph; with the options it goes back to be
            # used by what is captured next.
            kept.append(torch.empty(size, dtype=torch.uint8, device=q.device))
            return int(kept[-1].data_ptr())

        options.allocate = allocate


def options_of(call: Call, q: Any) -> _core.Options:
    """The call for _core, on arrays like q."""
    options = _core.Options()
    options.dtype = dtype_name(q)
    if on_cuda(q):
        _set_stream(options, q)
    options.scale = call.scale
    options.causal = call.causal
    options.window_left = call.window_left
    options.window_right = call.window_right
    options.softcap = call.softcap
    if call.mask is not None:
        options.mask = raw(call.mask)
        options.mask_dtype = dtype_name(call.mask)
    if call.alibi_slopes is not None:
        options.alibi_slopes = raw(call.alibi_slopes)
    if call.cu_seqlens_q is not None:
        options.cu_seqlens_q = raw(call.cu_seqlens_q)
        options.max_seqlen_q = call.max_seqlen_q
    if call.cu_seqlens_k is not None:
        options.cu_seqlens_k = raw(call.cu_seqlens_k)
        options.max_seqlen_k = call.max_seqlen_k
    if call.seqused_k is not None:
        options.seqused_k = raw(call.seqused_k)
    if call.leftpad_k is not None:
        options.leftpad_k = raw(call.leftpad_k)
    options.dropout_p = call.dropout_p
    options.seed = call.seed
    options.offset = call.offset
    return options


def lse_shape(q: Any, varlen: bool) -> Tuple[int, ...]:
    """(batch, heads, seqlen_q), or (heads, rows) for varlen."""
    return (q.shape[1], q.shape[0]) if varlen else (q.shape[0], q.shape[2], q.shape[1])


def forward(q: Any, k: Any, v: Any, call: Call, out: Optional[Any] = None) -> Tuple[Any, Any]:
    """out and lse; a row that sees nothing has lse -inf. `out` is written if it is given."""
    if out is None:
        out = empty(q, tuple(q.shape[:-1]) + (v.shape[-1],))
    lse = empty(q, lse_shape(q, call.cu_seqlens_q is not None), "float32")
    _core.forward(raw(q), raw(k), raw(v), raw(out), raw(lse), options_of(call, q))
    return out, lse


def backward(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, call: Call) -> Tuple[Any, Any, Any]:
    """dq, dk and dv, contiguous."""
    dq, dk, dv = (empty(x, x.shape) for x in (q, k, v))
    _core.backward(
        raw(dout), raw(q), raw(k), raw(v), raw(out), raw(lse), raw(dq), raw(dk), raw(dv), options_of(call, q)
    )
    return dq, dk, dv
