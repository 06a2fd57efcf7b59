"""torch.nn.functional.scaled_dot_product_attention's signature and conventions, for tensors and NumPy arrays."""

from typing import Any, Optional

from . import _check
from ._arrays import contiguous_last, swap_rows_heads
from ._functional import attend
from ._native import Call


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Optional[Any] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale * query key^T + mask) value, as torch.nn.functional.scaled_dot_product_attention defines it.

    query: (batch, H_q, seqlen_q, head_dim), key: (batch, H_k, seqlen_k, head_dim), value: (batch, H_k, seqlen_k,
    v_head_dim), any strides with a contiguous last dimension (else one copy). Three dimensions are (batch, seqlen,
    head_dim), of one head. H_q must be H_k; with enable_gqa=True it may be a multiple, and nothing is repeated.

    attn_mask: broadcasts to (batch, H_q, seqlen_q, seqlen_k); bool (True: takes part) or a float that is added to the
    scores (no gradient is computed for it). is_causal=True shows keys j <= i: aligned to the *top left*, unlike
    flash_attn_func's. Not both. A row that sees nothing gives 0. dropout_p applies whenever it is above 0.

    Returns (batch, H_q, seqlen_q, v_head_dim), whose memory is laid out as (batch, seqlen_q, H_q, v_head_dim).
    Gradients, dtypes and errors as in tessera.flash_attn.
    """
    rank = getattr(query, "ndim", 4)
    if rank == 3:
        layout = "(batch, seqlen, head_dim)"
    else:
        rank, layout = 4, "(batch, heads, seqlen, head_dim)"
    names = ("query", "key", "value")
    query, key, value = _check.float_arrays(names, (query, key, value), rank, layout, True)
    if rank == 3:
        query, key, value = query[:, None], key[:, None], value[:, None]
    q, k, v = (swap_rows_heads(contiguous_last(x)) for x in (query, key, value))
    _check.heads_and_dims(q, k, v, True, names)
    if q.shape[2] != k.shape[2] and not enable_gqa:
        raise ValueError(f"query has {q.shape[2]} heads and key {k.shape[2]}; enable_gqa=True allows that")
    rows, keys = q.shape[1], k.shape[1]
    dropout_p = _check.dropout(dropout_p)
    mask_shape = (q.shape[0], q.shape[2], rows, keys) if rank == 4 else (q.shape[0], rows, keys)
    call = Call(
        scale=_check.scale_of(scale, q.shape[-1], "scale"),
        mask=_check.mask(attn_mask, q, mask_shape),
        dropout_p=dropout_p,
    )
    if call.mask is not None and rank == 3 and call.mask.ndim == 3:
        call.mask = call.mask[:, None]
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask must be None when is_causal=True")
        # Top-left alignment in terms of the bottom-right one: no row sees a key behind seqlen_q, so they are left out;
        # where keys are fewer, key j <= row i is a window to the right of i + keys - rows.
        if keys > rows:
            k, v = k[:, :rows], v[:, :rows]
        if keys >= rows:
            call.causal = True
        else:
            call.window_right = rows - keys
    out, _ = attend(q, k, v, call)
    out = swap_rows_heads(out)
    return out[:, 0] if rank == 3 else out
