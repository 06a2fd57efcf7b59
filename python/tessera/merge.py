"""Joining attention over disjoint sets of keys: split caches, shared prefixes, context parallelism."""

from typing import Any, Sequence, Tuple

from . import _check, _core
from ._arrays import contiguous_last, current_stream, dtype_name, empty, is_tensor, raw, same_place


def merge_arrays(outs: Sequence[Any], lses: Sequence[Any]) -> Tuple[Any, Any]:
    """One call of the C++ code over checked arrays."""
    out, lse = empty(outs[0], outs[0].shape), empty(lses[0], lses[0].shape)
    # Without a batch axis (varlen) there is one batch.
    parts = ([raw(x if x.ndim == rank else x[None]) for x in xs] for xs, rank in (((*outs, out), 4), ((*lses, lse), 3)))
    (*outs, to), (*lses, to_lse) = parts
    dtype = dtype_name(out)
    _core.merge_states(outs, lses, to, to_lse, dtype, dtype, *current_stream(out))
    return out, lse


def merge_states(outs: Sequence[Any], lses: Sequence[Any]) -> Tuple[Any, Any]:
    """Attention over all keys from attention over parts of them. No gradients.

    outs: parts as flash_attn_func (batch, seqlen, heads, head_dim) or flash_attn_varlen_func (rows, heads, head_dim)
    return them, of one shape and dtype; lses: their softmax_lse, float32, (batch, heads, seqlen) or (heads, rows). The LSE is
    the *natural* logarithm everywhere in Tessera (FlashInfer's merge_state takes base 2: multiply by ln 2).

    A row whose lse is -inf or +inf saw nothing in that part and weighs nothing; its out is not read. Returns (out, lse);
    a row that saw nothing in any part has out 0 and lse -inf. Joining is exact but for rounding, in any order; one part
    alone comes back unchanged.
    """
    outs, lses = list(outs), list(lses)
    if not outs or len(outs) != len(lses):
        raise ValueError(f"{len(outs)} outs and {len(lses)} lses; as many of both are needed, at least 1")
    rank = getattr(outs[0], "ndim", 4)
    if rank not in (3, 4):
        raise ValueError(f"outs[0] has {rank} dimensions; it must have 4, or 3 for varlen")
    layout = "as outs[0]"
    outs = list(_check.float_arrays([f"outs[{i}]" for i in range(len(outs))], outs, rank, layout, True))
    names = [f"lses[{i}]" for i in range(len(lses))]
    lses = list(_check.float_arrays(names, lses, rank - 1, "without head_dim", True))
    if is_tensor(lses[0]) != is_tensor(outs[0]):
        raise TypeError("lses and outs must be of one kind, tensors or other arrays")
    same_place(lses[0], "lses[0]", outs[0], "outs[0]")
    if dtype_name(lses[0]) != "float32":
        raise TypeError(f"lses[0] has dtype {dtype_name(lses[0])}; float32 is needed")
    *batch, rows, heads, _ = outs[0].shape
    for i, (out, lse) in enumerate(zip(outs, lses)):
        _check.shape(out, outs[0].shape, f"outs[{i}]")
        _check.shape(lse, (*batch, heads, rows), f"lses[{i}]")
    outs = [contiguous_last(x) for x in outs]
    if is_tensor(outs[0]):
        from . import _torch

        out, lse = _torch.merge_states([x.detach() for x in outs], [x.detach() for x in lses])
        return out, lse
    return merge_arrays(outs, lses)


def merge_state(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any) -> Tuple[Any, Any]:
    """merge_states() of two parts."""
    return merge_states([out_a, out_b], [lse_a, lse_b])
