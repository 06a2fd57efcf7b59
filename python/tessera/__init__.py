"""Exact transformer attention, forward and backward, for NumPy arrays and PyTorch tensors of the CPU and of CUDA devices.

flash_attn_func and its family have flash-attn 2.8's signatures and conventions (see tessera.flash_attn);
scaled_dot_product_attention has PyTorch's; attention_forward and attention_backward are plain functions. Arrays come in
without copies and results of NumPy arrays are NumPy arrays. Calls release the GIL and share one set of threads, one call
at a time; results never depend on the number of threads.
"""

import os as _os

from . import _core
from ._functional import manual_seed
from .cache_tree import CacheTreePlan
from .flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from .kvcache import flash_attn_with_kvcache
from .merge import merge_state, merge_states
from .plain import alibi_slopes, attention_backward, attention_forward
from .rotary import apply_rotary_emb, apply_rotary_emb_kv_, apply_rotary_emb_qkv_
from .sdpa import scaled_dot_product_attention
from .tree import PrefixTree, Sequence, Step, tree_attention

__version__ = _core.__version__
__all__ = [
    "CacheTreePlan",
    "PrefixTree",
    "Sequence",
    "Step",
    "alibi_slopes",
    "apply_rotary_emb",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
    "attention_backward",
    "attention_forward",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "get_num_threads",
    "manual_seed",
    "merge_state",
    "merge_states",
    "scaled_dot_product_attention",
    "set_num_threads",
    "tree_attention",
]

_os.register_at_fork(after_in_child=_core.after_fork_in_child)


def get_num_threads() -> int:
    """Threads that a call uses, the caller's included."""
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Uses `threads` threads from now on; 0: one for each CPU that the process may run on, as at the start.

    ValueError unless 0 <= threads <= 1024. Waits for a call that another Python thread has running.
    """
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads is {threads!r}; an integer is needed")
    _core.set_num_threads(threads)
