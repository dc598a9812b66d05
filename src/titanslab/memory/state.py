"""The state of one memory as a plain value: save it, split it, copy it, send it away."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from titanslab.memory.network import MemoryParams


@dataclass(frozen=True)
class MemoryState:
    """What a memory knows after reading some tokens.

    Args:
        weights: M_t, one `[B, H, d_in, d_out]` per layer.
        momentum: S_t, same shapes.
        chunk_weights: weights at the start of the running chunk, same shapes; not read where `offset` is 0.
        offset: int64 `[B]`, tokens of the running chunk already written, per row.
        joined: what these weights and momentum are views of, for `stacked`, and the two themselves; or None.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    chunk_weights: tuple[Tensor, ...]
    offset: Tensor
    joined: tuple[tuple[Tensor, ...], ...] | None = field(default=None, repr=False)

    @classmethod
    def initial(cls, params: MemoryParams, batch_size: int) -> "MemoryState":
        """M_0 for every row, no momentum, at a chunk boundary."""
        weights = tuple(w.unsqueeze(0).expand(batch_size, *w.shape) for w in params.weights)
        momentum = tuple(torch.zeros_like(w) for w in weights)
        offset = torch.zeros(batch_size, dtype=torch.int64, device=weights[0].device)
        return cls(weights, momentum, weights, offset)

    @property
    def batch_size(self) -> int:
        return self.offset.shape[0]

    @property
    def stacked(self) -> list[Tensor] | None:
        """Weights above momentum, `[B * H, 2 d_in, d_out]` per layer, where they lie so: it spares a call a copy."""
        if self.joined is None or self.joined[1] is not self.weights or self.joined[2] is not self.momentum:
            return None  # also where dataclasses.replace put others in
        return list(self.joined[0])

    def map(self, fn: Callable[[Tensor], Tensor]) -> "MemoryState":
        """`fn` applied to every tensor, `offset` included."""
        return MemoryState(
            tuple(fn(t) for t in self.weights),
            tuple(fn(t) for t in self.momentum),
            tuple(fn(t) for t in self.chunk_weights),
            fn(self.offset),
        )

    def map_weights(self, fn: Callable[[Tensor], Tensor]) -> "MemoryState":
        """`fn` applied to every floating-point tensor; `offset` as it is."""
        return self.map(lambda t: fn(t) if t.is_floating_point() else t)

    def detach(self) -> "MemoryState":
        return self.map(Tensor.detach)

    def clone(self) -> "MemoryState":
        return self.map(Tensor.clone)

    def expand(self, batch_size: int) -> "MemoryState":
        """A state of one row, seen as `batch_size` equal rows (no copy)."""
        return self.map(lambda t: t.expand(batch_size, *t.shape[1:]))

    def index_select(self, rows: Tensor) -> "MemoryState":
        """The given rows of the batch, in that order."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def to(self, dtype: torch.dtype) -> "MemoryState":
        """The state in another dtype, or itself where it has it already."""
        parts = (*self.weights, *self.momentum, *self.chunk_weights)
        return self if all(t.dtype == dtype for t in parts) else self.map_weights(lambda t: t.to(dtype))

    def check(self, name: str, q: Tensor, widths: list[tuple[int, int]], batches: set[int]) -> None:
        """Raise a ValueError if this state, the argument `name`, does not fit q `[B,T,H,D]`."""
        if self.batch_size not in batches:
            raise ValueError(f"{name} holds {self.batch_size} rows, q has a batch of {q.shape[0]}")
        for part in ("weights", "momentum", "chunk_weights"):
            tensors = getattr(self, part)
            if len(tensors) != len(widths):
                raise ValueError(f"{name}.{part} must hold {len(widths)} tensors, one per layer, got {len(tensors)}")
            for layer, (tensor, width) in enumerate(zip(tensors, widths, strict=True)):
                check_shape(f"{name}.{part}[{layer}]", tensor, (self.batch_size, q.shape[2], *width), q)

    def at_boundary(self) -> "MemoryState":
        """The same memory, its current weights taken as the start of a new chunk."""
        return MemoryState(self.weights, self.momentum, self.weights, torch.zeros_like(self.offset))

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, for saving."""
        out = {"offset": self.offset}
        for name in ("weights", "momentum", "chunk_weights"):
            out |= {f"{name}.{i}": t for i, t in enumerate(getattr(self, name))}
        return out

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "MemoryState":
        """Inverse of `tensors()`."""
        depth = sum(name.startswith("weights.") for name in tensors)
        weights, momentum, chunk_weights = (
            tuple(tensors[f"{name}.{i}"] for i in range(depth)) for name in ("weights", "momentum", "chunk_weights")
        )
        return cls(weights, momentum, chunk_weights, tensors["offset"])

    def nbytes(self) -> int:
        """Bytes this state takes when stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


def where_rows(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where `rows [B]` is true, else of `b`; `a` and `b` are `[B or 1, ...]`."""
    return torch.where(rows.view(-1, *[1] * (b.dim() - 1)), a, b)


def check_shape(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise a ValueError unless `x` has that shape and is on the device of `like`, which is q."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, q is on {like.device}; move one of them")
