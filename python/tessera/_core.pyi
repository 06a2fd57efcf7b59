"""The C++ module. Private: arrays are NumPy arrays (bfloat16 as bits), CPU tensors or capsules of CUDA tensors."""

from typing import Any, List, Optional

__version__: str

class Options:
    dtype: str
    scale: float
    causal: bool
    window_left: int
    window_right: int
    softcap: float
    mask: Any
    mask_dtype: str
    alibi_slopes: Any
    cu_seqlens_q: Any
    cu_seqlens_k: Any
    max_seqlen_q: int
    max_seqlen_k: int
    seqused_k: Any
    leftpad_k: Any
    dropout_p: float
    seed: int
    offset: int
    device: int
    stream: int
    allocate: Any
    def __init__(self) -> None: ...

def cuda_devices() -> str: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def after_fork_in_child() -> None: ...
def workspace_bytes() -> int: ...
def forward(q: Any, k: Any, v: Any, out: Any, lse: Optional[Any], options: Options) -> None: ...
def backward(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, dq: Any, dk: Any, dv: Any, options: Options) -> None: ...
def alibi_slopes(heads: int) -> List[float]: ...
def dropout_mask(keep: Any, p: float, seed: int, offset: int) -> None: ...

class Cache:
    k_cache: Any
    v_cache: Any
    k_read: Any
    v_read: Any
    k: Any
    v: Any
    cos: Any
    sin: Any
    rotary_dtype: str
    interleaved: bool
    seqlens: Any
    batch_idx: Any
    block_table: Any
    def __init__(self) -> None: ...

def attend_cache(q: Any, cache: Cache, out: Any, lse: Optional[Any], options: Options) -> None: ...

class CacheTreePlan:
    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        num_blocks: int,
        block_size: int,
        block_table: Any,
        seqlens: Any,
        appended: int,
        reserve: int,
        sharing: str,
        options: Options,
    ) -> None: ...
    def attend(self, q: Any, cache: Cache, out: Any, lse: Optional[Any], options: Options) -> None: ...
    def refusal(self, seqlens: Any) -> str: ...
    def explain(self) -> str: ...
    def reads(self) -> List[int]: ...

def rotary(
    x: Any,
    out: Any,
    cos: Any,
    sin: Any,
    dtype: str,
    rotary_dtype: str,
    interleaved: bool,
    backward: bool,
    offset: int,
    offsets: Optional[Any],
    cu_seqlens: Optional[Any],
    device: int,
    stream: int,
) -> None: ...
def merge_states(
    outs: List[Any], lses: List[Any], out: Any, lse: Any, dtype: str, out_dtype: str, device: int, stream: int
) -> None: ...

class Tree:
    def __init__(
        self,
        num_blocks: int,
        kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        layers: int,
        dtype: str,
        prefix_caching: bool,
    ) -> None: ...
    def blocks(self) -> List[int]: ...
    def bytes(self) -> int: ...
    def check_invariants(self) -> None: ...

class Sequence:
    def tokens(self) -> List[int]: ...
    def length(self) -> int: ...
    def fork(self) -> Sequence: ...
    def publish(self) -> None: ...
    def truncate(self, length: int) -> None: ...

def make_sequence(tree: Tree, tokens: List[int], tenant: str) -> Sequence: ...

class Step:
    def __init__(self, tree: Tree, sequences: List[Sequence], tokens: List[List[int]]) -> None: ...
    def rows(self) -> int: ...
    def positions(self) -> List[int]: ...
    def append(
        self,
        layer: int,
        k: Any,
        v: Any,
        dtype: str,
        cos: Optional[Any],
        sin: Optional[Any],
        rotary_dtype: str,
        interleaved: bool,
    ) -> None: ...
    def attend(
        self,
        layer: int,
        q: Any,
        out: Any,
        lse: Optional[Any],
        cos: Optional[Any],
        sin: Optional[Any],
        rotary_dtype: str,
        interleaved: bool,
        share: bool,
        options: Options,
    ) -> None: ...
    def explain(self) -> str: ...
    def reads(self) -> List[int]: ...
