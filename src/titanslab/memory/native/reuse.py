"""Memory that comes back when its tensor is gone: fresh pages, cleared by the system, cost a large call a twentieth.

For what waits for backward alone: what is gone sooner would only lie here instead.
"""

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

# what may lie unused between calls, and what comes from the system at every call otherwise
FREE_BYTES = 192 << 20
LARGE_BYTES = 1 << 20
_free: list[Tensor] = []  # of bytes, longest unused first


def release() -> None:
    """Give back what lies unused."""
    _free.clear()


def lend(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; another of its size gets the same memory once nobody holds this one, if it is large."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    at = next((i for i, buffer in enumerate(_free) if buffer.numel() == size), None)
    buffer = torch.empty(size, dtype=torch.uint8) if at is None else _free.pop(at)
    lease = _lease(size).from_address(buffer.data_ptr())
    lease.buffer = buffer  # type: ignore[attr-defined]
    return torch.frombuffer(lease, dtype=dtype).view(shape)


def _take_back(buffer: Tensor) -> None:
    _free.append(buffer)
    while sum(b.numel() for b in _free) > FREE_BYTES:
        _free.pop(0)


@cache
def _lease(size: int) -> type[ctypes.Array]:
    """What a tensor's storage holds on to: as it goes, its memory is free."""

    class Lease(ctypes.c_char * size):  # type: ignore[misc]
        buffer: Tensor

        def __del__(self) -> None:
            _take_back(self.buffer)

    return Lease
