"""flash-attn 2.8's functions, on the CPU and on CUDA tensors: the same parameters, defaults, results and conventions.

What they share, with i a query row, j a key, S_q and S_k the lengths of one sequence:

- q has heads H_q, k and v have H_k; H_q is a multiple of H_k, and query head h reads head h // (H_q // H_k). Head
  dimensions run from 1 to 256; v's may differ. float32, float16 or bfloat16, all alike; sums are float32.
- A row stands at i + S_k - S_q: masks are aligned to the bottom right. causal=True shows keys j <= i + S_k - S_q.
  window_size=(left, right) shows keys from i + S_k - S_q - left to i + S_k - S_q + right, both included; -1: no limit.
- softmax_scale defaults to 1 / sqrt(head_dim). softcap > 0 makes a score cap * tanh(score / cap), after scaling and
  before masks and ALiBi; not together with dropout. alibi_slopes, float32 of shape (H_q,) or (batch, H_q), subtracts
  slope * |i + S_k - S_q - j|.
- A row that sees no key gives 0, and +inf in softmax_lse (natural logarithm, float32).
- dropout_p in [0, 1). Kept probabilities are scaled by the rate of keeping, a multiple of 1/256. The seed comes from
  torch's generator for tensors (torch.manual_seed) and from tessera.manual_seed's for NumPy arrays. Which entries drop
  differs from flash-attn's.
- deterministic: taken for compatibility; the backward is always deterministic, and no result depends on the number of
  threads.
- return_attn_probs=True returns (out, softmax_lse, S_dmask). S_dmask is for tests: the softmax itself, negative where
  dropped; empty without dropout.
- Tensors get tensors, with gradients of q, k and v; other arrays get NumPy arrays. An array whose last dimension is not
  contiguous is copied once; nothing else is.

Errors: TypeError (not an array, a wrong or mixed dtype, arrays of mixed kinds), ValueError (anything else about the
arguments); the text names the argument, its value and what is allowed.
"""

from typing import Any, Optional, Tuple

from . import _check
from ._arrays import contiguous_last
from ._functional import attend, flash_call, flash_lse, probabilities, set_varlen
from ._native import Call

Window = Tuple[int, int]


def _run(q: Any, k: Any, v: Any, call: Call, return_attn_probs: bool) -> Any:
    out, lse = attend(contiguous_last(q), contiguous_last(k), contiguous_last(v), call)
    return (out, flash_lse(lse), probabilities(q, k, call)) if return_attn_probs else out


def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """softmax(q k^T) v over batches of equal lengths. See the module for what the parameters mean.

    q: (batch, seqlen_q, H_q, head_dim); k, v: (batch, seqlen_k, H_k, head_dim).
    Returns out: (batch, seqlen_q, H_q, head_dim of v), or (out, softmax_lse, S_dmask) with softmax_lse of
    (batch, H_q, seqlen_q).
    """
    q, k, v = _check.float_arrays("qkv", (q, k, v), 4, "(batch, seqlen, heads, head_dim)", True)
    _check.heads_and_dims(q, k, v, True)
    call = flash_call(q, q.shape[0], dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes)
    return _run(q, k, v, call, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Any,
    kv: Any,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_func() with k and v in one array, read where they lie.

    q: (batch, seqlen_q, H_q, head_dim); kv: (batch, seqlen_k, 2, H_k, head_dim).
    """
    (kv,) = _check.float_arrays(("kv",), (kv,), 5, "(batch, seqlen_k, 2, heads, head_dim)", True)
    _packed(kv, 2, 2, "kv")
    return flash_attn_func(
        q, kv[:, :, 0], kv[:, :, 1], dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
        deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_qkvpacked_func(
    qkv: Any,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_func() with q, k and v in one array (batch, seqlen, 3, heads, head_dim), read where they lie."""
    (qkv,) = _check.float_arrays(("qkv",), (qkv,), 5, "(batch, seqlen, 3, heads, head_dim)", True)
    _packed(qkv, 2, 3, "qkv")
    return flash_attn_func(
        qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], dropout_p, softmax_scale, causal, window_size, softcap,
        alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Optional[Any] = None,
) -> Any:
    """Sequences of different lengths, one behind the other, nothing padded.

    q: (rows of all sequences, H_q, head_dim); k, v: (rows, H_k, head_dim). Sequence b has the rows cu_seqlens[b] to
    cu_seqlens[b + 1] - 1; cu_seqlens_q and cu_seqlens_k are (batch + 1,) integers that start at 0, never fall and end
    inside the array (rows behind the end give 0). max_seqlen_q and max_seqlen_k: at least the longest lengths.
    With block_table, (batch, max_blocks) integers, k and v are caches (num_blocks, block_size, H_k, head_dim): key j of
    sequence b lies in slot j % block_size of block block_table[b, j // block_size]. No gradients then, and no dropout.
    Returns out: (rows, H_q, head_dim of v), or (out, softmax_lse, S_dmask) with softmax_lse of (H_q, rows).
    """
    if block_table is not None:
        from .kvcache import varlen_with_block_table

        if dropout_p != 0.0:
            raise ValueError(f"dropout_p={dropout_p} must be 0 with a block_table")
        return varlen_with_block_table(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size,
            softcap, alibi_slopes, return_attn_probs, block_table,
        )  # fmt: skip
    q, k, v = _check.float_arrays("qkv", (q, k, v), 3, "(rows of all sequences, heads, head_dim)", True)
    _check.heads_and_dims(q, k, v, False)
    batch = _check.batch_of(cu_seqlens_q)
    call = flash_call(q, batch, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes)
    set_varlen(call, q, batch, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return _run(q, k, v, call, return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q: Any,
    kv: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_varlen_func() with k and v in one array (rows, 2, H_k, head_dim), read where they lie."""
    (kv,) = _check.float_arrays(("kv",), (kv,), 4, "(rows of all sequences, 2, heads, head_dim)", True)
    _packed(kv, 1, 2, "kv")
    return flash_attn_varlen_func(
        q, kv[:, 0], kv[:, 1], cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
        causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_qkvpacked_func(
    qkv: Any,
    cu_seqlens: Any,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Optional[Any] = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """flash_attn_varlen_func() with q, k and v in one array (rows, 3, heads, head_dim), read where they lie."""
    (qkv,) = _check.float_arrays(("qkv",), (qkv,), 4, "(rows of all sequences, 3, heads, head_dim)", True)
    _packed(qkv, 1, 3, "qkv")
    return flash_attn_varlen_func(
        qkv[:, 0], qkv[:, 1], qkv[:, 2], cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale,
        causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def _packed(x: Any, axis: int, parts: int, name: str) -> None:
    if x.shape[axis] != parts:
        raise ValueError(f"{name} has {x.shape[axis]} in dimension {axis}; it must be {parts}")
