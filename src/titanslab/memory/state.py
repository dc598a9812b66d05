"""`MemoryState` and `NeuralMemoryState`: the state of a memory and of its layer, as plain values.

A state can be saved, split, copied and sent away; no call changes one in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from titanslab.memory.network import MemoryParams
from titanslab.memory.tree import TensorTree


@dataclass(frozen=True)
class MemoryState(TensorTree):
    """State of the memories of one layer after some tokens.

    Args:
        weights: M_t, one `[B, H, d_in, d_out]` per layer.
        momentum: S_t, same shapes.
        chunk_weights: weights at the start of the running chunk, same shapes; not read where `offset` is 0.
        offset: int64 `[B]`, tokens of the running chunk already written, per row.
        joined: tensors of which `weights` and `momentum` are views, for `stacked`, then these two; or None.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    chunk_weights: tuple[Tensor, ...]
    offset: Tensor
    joined: tuple[tuple[Tensor, ...], ...] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def initial(cls, params: MemoryParams, batch_size: int) -> "MemoryState":
        """M_0 for every row, no momentum, at a chunk boundary."""
        weights = tuple(w.unsqueeze(0).expand(batch_size, *w.shape) for w in params.weights)
        momentum = tuple(torch.zeros_like(w) for w in weights)
        offset = torch.zeros(batch_size, dtype=torch.int64, device=weights[0].device)
        return cls(weights, momentum, weights, offset)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.offset.shape[0]

    @property
    def stacked(self) -> list[Tensor] | None:
        """Weights above momentum, `[B * H, 2 d_in, d_out]` per layer, if they are views of one tensor, else None.

        A caller that gets them need not copy weights and momentum into one tensor.
        """
        if self.joined is None or self.joined[1] is not self.weights or self.joined[2] is not self.momentum:
            return None  # `dataclasses.replace` keeps `joined` although it changes the weights
        return list(self.joined[0])

    def map_weights(self, fn: Callable[[Tensor], Tensor]) -> "MemoryState":
        """The same state with `fn` applied to every floating-point tensor, so to all but `offset`."""
        return self.map(lambda t: fn(t) if t.is_floating_point() else t)

    def to(self, dtype: torch.dtype) -> "MemoryState":
        """The state in another dtype, or the state itself if it already has that dtype."""
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
        """The same memory; its current weights become the start of a new chunk."""
        return MemoryState(self.weights, self.momentum, self.weights, torch.zeros_like(self.offset))


@dataclass(frozen=True)
class NeuralMemoryState(TensorTree):
    """State of a `NeuralMemory` layer between calls: its memories and the last inputs of its convolutions.

    Args:
        memory: the fast weights.
        conv: `[B, conv_size-1, H*D]` for "q", "k", "v" and, for `retrieve`, "read".
    """

    memory: MemoryState
    conv: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.memory.batch_size

    def as_start(self) -> "NeuralMemoryState":
        """The state with which a document starts: at a chunk boundary, and reads continue the convolution of q."""
        return NeuralMemoryState(self.memory.at_boundary(), {**self.conv, "read": self.conv["q"]})


def with_read(conv: dict[str, Tensor], source: NeuralMemoryState | None) -> dict[str, Tensor]:
    """The tails `conv` of q, k and v after a write, with the tail "read" of `source`, which a write does not change."""
    read = conv["q"].new_zeros(conv["q"].shape) if source is None else source.conv["read"]
    return {**conv, "read": read.expand_as(conv["q"])}


def where_rows(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where `rows [B]` is true, else of `b`; `a` and `b` are `[B or 1, ...]`."""
    return torch.where(rows.view(-1, *[1] * (b.dim() - 1)), a, b)


def check_shape(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise a ValueError unless `x` has that shape and is on the device of `like`, which is q."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, q is on {like.device}; move one of them")
