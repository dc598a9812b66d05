"""Memory that comes back when its tensor is gone: fresh pages, cleared by the system, cost a large call a twentieth.

For what waits for backward alone: what is gone sooner would only lie here instead.
"""

import ctypes
import math
import sys
from functools import lru_cache

import torch
from torch import Tensor

# what may lie unused between calls, and what comes from the system at every call otherwise
FREE_BYTES = 192 << 20
LARGE_BYTES = 1 << 20
_free: dict[int, list[Tensor]] = {}  # by size, longest unused first; each step is one of Python's, so threads may meet


def release() -> None:
    """Give back what lies unused."""
    _free.clear()


def unused_bytes() -> int:
    """What `release` would give back."""
    return sum(size * len(buffers) for size, buffers in list(_free.items()))


def lend(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; another of its size gets the same memory once nobody holds this one, if it is large."""
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
    """What a tensor's storage holds on to: as it goes, its memory is free."""

    class Lease(ctypes.c_char * size):  # type: ignore[misc]
        buffer: Tensor

        def __del__(self) -> None:
            if not sys.is_finalizing():
                _take_back(self.buffer)

    return Lease
