"""Buffers that are used again once their tensor is freed. The system clears each new page, a twentieth of a large call.

For tensors that forward saves for backward. A tensor with a shorter life gains nothing: its buffer would lie unused.
"""

import ctypes
import math
import sys
from functools import lru_cache

import torch
from torch import Tensor

# Most bytes of unused buffers.
FREE_BYTES = 192 << 20
# Smallest buffer that is used again; smaller tensors come from torch.
LARGE_BYTES = 1 << 20
# Unused buffers by size in bytes, longest unused first. Threads may share it: each access is one atomic operation.
_free: dict[int, list[Tensor]] = {}


def release() -> None:
    """Free all unused buffers."""
    _free.clear()


def unused_bytes() -> int:
    """Bytes of the unused buffers, which `release` would free."""
    return sum(size * len(buffers) for size, buffers in list(_free.items()))


def lend(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor. If it is large, its memory serves the next tensor of its size once it is freed."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    try:
        buffer = _free[size].pop()
    except (KeyError, IndexError):
        buffer = torch.empty(size, dtype=torch.uint8)
    lease = _lease(size).from_address(buffer.data_ptr())
    lease.buffer = buffer  # type: ignore[attr-defined]
    return torch.frombuffer(lease, dtype=dtype).view(shape)


def _take_back(buffer: Tensor) -> None:
    """Adds a buffer to the unused ones; the longest unused sizes are freed to keep all within `FREE_BYTES`."""
    size = buffer.numel()
    same = _free.pop(size, [])
    while _free and unused_bytes() + (len(same) + 1) * size > FREE_BYTES:
        _free.pop(next(iter(_free), 0), None)
    if (len(same) + 1) * size <= FREE_BYTES:
        same.append(buffer)
    if same:
        _free[size] = same


@lru_cache(maxsize=64)
def _lease(size: int) -> type[ctypes.Array]:
    """The object that owns the memory of a tensor's storage; when it is deleted, its buffer is unused."""

    class Lease(ctypes.c_char * size):  # type: ignore[misc]
        buffer: Tensor

        def __del__(self) -> None:
            if not sys.is_finalizing():
                _take_back(self.buffer)

    return Lease
