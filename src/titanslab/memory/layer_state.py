"""`NeuralMemoryState`: what a memory layer carries over between calls, as a value."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from titanslab.memory.state import MemoryState, where_rows


@dataclass(frozen=True)
class NeuralMemoryState:
    """What a `NeuralMemory` layer carries over between calls: the memory and the convolutions' last inputs.

    Args:
        memory: the fast weights. conv: `[B, conv_size-1, H*D]` for "q", "k", "v" and, for `retrieve`, "read".
    """

    memory: MemoryState
    conv: dict[str, Tensor]

    @property
    def batch_size(self) -> int:
        return self.memory.batch_size

    def map(self, fn: Callable[[Tensor], Tensor]) -> "NeuralMemoryState":
        """`fn` applied to every tensor."""
        return NeuralMemoryState(self.memory.map(fn), {k: fn(t) for k, t in self.conv.items()})

    def as_start(self) -> "NeuralMemoryState":
        """The same memory at a chunk boundary, its reads continuing the convolution of q: where a document starts."""
        return NeuralMemoryState(self.memory.at_boundary(), {**self.conv, "read": self.conv["q"]})

    def detach(self) -> "NeuralMemoryState":
        return self.map(Tensor.detach)

    def clone(self) -> "NeuralMemoryState":
        return self.map(Tensor.clone)

    def expand(self, batch_size: int) -> "NeuralMemoryState":
        """A state of one row, seen as `batch_size` equal rows (no copy)."""
        return self.map(lambda t: t.expand(batch_size, *t.shape[1:]))

    def index_select(self, rows: Tensor) -> "NeuralMemoryState":
        """The given rows of the batch, in that order."""
        return self.map(lambda t: t.index_select(0, rows.to(t.device)))

    def where(self, rows: Tensor, other: "NeuralMemoryState") -> "NeuralMemoryState":
        """Rows of this state where `rows [B]` is true, else of `other`; either may have one row for all."""
        pick = lambda a, b: tuple(where_rows(rows, x, y) for x, y in zip(a, b, strict=True))  # noqa: E731
        mine, others = self.memory, other.memory
        memory = MemoryState(
            pick(mine.weights, others.weights),
            pick(mine.momentum, others.momentum),
            pick(mine.chunk_weights, others.chunk_weights),
            where_rows(rows, mine.offset, others.offset),
        )
        return NeuralMemoryState(memory, {k: where_rows(rows, t, other.conv[k]) for k, t in self.conv.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, for saving."""
        return {f"memory.{k}": t for k, t in self.memory.tensors().items()} | {
            f"conv.{k}": t for k, t in self.conv.items()
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "NeuralMemoryState":
        """Inverse of `tensors()`."""
        parts: dict[str, dict[str, Tensor]] = {"memory": {}, "conv": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        return cls(MemoryState.from_tensors(parts["memory"]), parts["conv"])

    def nbytes(self) -> int:
        """Bytes this state takes when stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


def with_read(conv: dict[str, Tensor], source: NeuralMemoryState | None) -> dict[str, Tensor]:
    """The convolutions' tails and that of reads, which a write leaves alone."""
    read = conv["q"].new_zeros(conv["q"].shape) if source is None else source.conv["read"]
    return {**conv, "read": read.expand_as(conv["q"])}
