"""What callers pass as arrays: NumPy arrays, PyTorch tensors, or anything else that speaks DLPack on the CPU.

Two kinds go on from here: torch.Tensor (of the CPU or a CUDA device) and numpy.ndarray. Another library's array is viewed
as a NumPy array, so its results are NumPy arrays too. PyTorch is never imported here unless a caller passed a tensor.
"""

from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np

FLOATS = ("float32", "float16", "bfloat16")


def is_tensor(x: Any) -> bool:
    """Whether x is a torch.Tensor, without importing torch."""
    return hasattr(x, "detach") and hasattr(x, "requires_grad")


_names: Dict[Any, str] = {}  # of dtypes: NumPy takes microseconds to spell one


def dtype_name(x: Any) -> str:
    """ "float32", "bfloat16", "int32", "bool"..."""
    dtype = x.dtype
    if is_tensor(x):
        return str(dtype)[6:]
    name = _names.get(dtype)
    if name is None:
        name = _names[dtype] = str(dtype.name)
    return name


def describe(x: Any) -> str:
    """x's type as a caller knows it, for an error's text."""
    return f"{type(x).__module__}.{type(x).__name__}"


def on_cuda(x: Any) -> bool:
    """Whether x is a tensor of a CUDA device."""
    return is_tensor(x) and x.device.type == "cuda"


def place(x: Any) -> str:
    """Where x's memory is: "cpu", "cuda:0"..."""
    return str(x.device) if is_tensor(x) else "cpu"


def as_array(x: Any, name: str, cuda: bool = False) -> Any:
    """x as a torch.Tensor or numpy.ndarray over the same memory; on the CPU, or with cuda=True on a CUDA device.

    TypeError: not an array. ValueError: an array that is not plain memory of such a device.
    """
    if is_tensor(x):
        if x.device.type != "cpu" and not (cuda and x.device.type == "cuda"):
            raise ValueError(
                f"{name} is on the device {x.device}; only cpu{' and cuda are' if cuda else ' is'} supported here"
                f" (move it with {name}.cpu())"
            )
        if str(x.layout) != "torch.strided":
            raise ValueError(f"{name} has the layout {x.layout}; only torch.strided is supported")
        return x
    if not isinstance(x, np.ndarray):
        if not hasattr(x, "__dlpack__"):
            raise TypeError(f"{name} is a {describe(x)}; a NumPy array, a PyTorch tensor or a DLPack array is needed")
        if hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) != 1:
            raise ValueError(
                f"{name} is on a device of DLPack's type {int(x.__dlpack_device__()[0])}; only cpu (1) is supported, and"
                f" PyTorch's CUDA tensors (torch.from_dlpack({name}) makes one without a copy)"
            )
        x = np.from_dlpack(x)
    if not x.dtype.isnative or not x.flags.aligned or any(s % max(x.itemsize, 1) for s in x.strides):
        raise ValueError(f"{name} must be aligned, in the machine's byte order and have strides of whole elements")
    return x


def optional_array(x: Any, name: str) -> Any:
    """as_array(), None staying None."""
    return None if x is None else as_array(x, name)


def same_place(x: Any, name: str, like: Any, like_name: str) -> None:
    """ValueError unless x lies on the device of `like`."""
    if on_cuda(x) != on_cuda(like) or (on_cuda(x) and x.device != like.device):
        raise ValueError(f"{name} is on {place(x)} and {like_name} on {place(like)}; they must be on one device")


def current_stream(x: Any) -> Tuple[int, int]:
    """(CUDA ordinal, torch's current stream there) of x; (-1, 0) on the CPU."""
    if not on_cuda(x):
        return -1, 0
    import torch

    return int(x.device.index), int(torch.cuda.current_stream(x.device).cuda_stream)


def raw(x: Any) -> Any:
    """x as the C++ module takes it: without autograd's history, NumPy's bfloat16 as its bits. The same memory."""
    if x is None:
        return None
    if is_tensor(x):
        if x.device.type == "cpu":
            return x.detach()
        import torch

        # A capsule: __dlpack__() may wait for other streams, and the call runs on the current one.
        return torch.utils.dlpack.to_dlpack(x.detach())
    name = dtype_name(x)
    return x.view(np.uint16) if name == "bfloat16" else x.view(np.uint8) if name == "bool" else x


def empty(like: Any, shape: Sequence[int], dtype: Optional[str] = None) -> Any:
    """A new contiguous array of like's family; dtype: like's own, or "float32" or "uint8"."""
    if is_tensor(like):
        import torch

        return torch.empty(tuple(shape), dtype=like.dtype if dtype is None else getattr(torch, dtype), device=like.device)
    return np.empty(tuple(shape), dtype=like.dtype if dtype is None else dtype)


def to_int32(x: Any, name: str, shape: Tuple[int, ...], like: Any, like_name: str = "q") -> Any:
    """An array of integers as contiguous int32 of like's family; None stays None.

    TypeError: not integers. ValueError: another shape, another device, or values that int32 cannot hold.
    """
    if x is None:
        return None
    x = as_array(x, name, on_cuda(like))
    same_place(x, name, like, like_name)
    kind = dtype_name(x)
    if kind not in ("int8", "int16", "int32", "int64", "uint8", "uint16"):
        raise TypeError(f"{name} has dtype {kind}; int32 is needed")
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(shape)}")
    if is_tensor(like):
        import torch

        x = x if is_tensor(x) else torch.from_numpy(np.ascontiguousarray(x))
        if kind == "int64":
            x = x.clamp(-(2**31), 2**31 - 1)  # what int32 cannot hold stays out of every range
        return x.to(torch.int32).contiguous()
    x = x.numpy() if is_tensor(x) else x
    if kind == "int64" and x.size:
        low, high = int(x.min()), int(x.max())
        if low < -(2**31) or high >= 2**31:
            raise ValueError(f"{name} holds {low if low < 0 else high}; int32 cannot")
    return np.ascontiguousarray(x, dtype=np.int32)


def contiguous_last(x: Any) -> Any:
    """x itself if its last dimension is contiguous (and no stride negative), else one contiguous copy."""
    if is_tensor(x):
        return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()
    good = x.shape[-1] <= 1 or x.strides[-1] == x.itemsize
    return x if good and min(x.strides) >= 0 else np.ascontiguousarray(x)


def swap_rows_heads(x: Any) -> Any:
    """[batch, heads, rows, dim] seen as [batch, rows, heads, dim], or back. No copy."""
    return x.transpose(1, 2) if is_tensor(x) else x.swapaxes(1, 2)


def pad_last(x: Any, size: int) -> Any:
    """x with zeros behind its last dimension up to `size`; x itself if it has that size."""
    missing = size - x.shape[-1]
    if missing == 0:
        return x
    if is_tensor(x):
        import torch

        return torch.nn.functional.pad(x, (0, missing))
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
