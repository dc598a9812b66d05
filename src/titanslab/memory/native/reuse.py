"""Memory that comes back when its tensor is gone: fresh pages, cleared by the system, cost a tenth of a large call."""

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

# what may lie unused between calls
FREE_BYTES = 128 << 20
_free: list[Tensor] = []  # of bytes, longest unused first


def lend(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; another of its size gets the same memory once nobody holds this one."""
    size = math.prod(shape) * dtype.itemsize
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
