"""`MixerState`: what one block carries over between calls, as a plain value."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from titanslab.memory import NeuralMemoryState


@dataclass(frozen=True)
class MixerState:
    """State of one block's token mixer; every tensor has the batch first.

    Args:
        memory: the neural memory after the last token; None where the mixer has none.
        read_weights: MAC only, the memory's weights at the start of the running segment, which its reads use.
        keys, values: `[B, H, N_p + L, D]`, attention's persistent tokens and then its last L slots: the
            window, all tokens, or (MAC) the retrieved and the own tokens of the running segment.
        conv: `[B, attention_conv_size - 1, hidden]` for "q", "k", "v", the last inputs of attention's convolutions.
    """

    memory: NeuralMemoryState | None = None
    read_weights: tuple[Tensor, ...] = ()
    keys: Tensor | None = None
    values: Tensor | None = None
    conv: dict[str, Tensor] = field(default_factory=dict)

    @property
    def attention(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values, or None where the mixer has no attention."""
        return None if self.keys is None or self.values is None else (self.keys, self.values)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "MixerState":
        """`fn` applied to every tensor."""
        return MixerState(
            None if self.memory is None else self.memory.map(fn),
            tuple(fn(t) for t in self.read_weights),
            None if self.keys is None else fn(self.keys),
            None if self.values is None else fn(self.values),
            {name: fn(t) for name, t in self.conv.items()},
        )

    def in_dtype(self, dtype: torch.dtype) -> "MixerState":
        """The same with keys and values in `dtype`; a memory keeps its own."""
        if self.keys is None or self.values is None:
            return self
        return replace(self, keys=self.keys.to(dtype), values=self.values.to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, for saving."""
        out = {} if self.memory is None else {f"memory.{k}": t for k, t in self.memory.tensors().items()}
        out |= {f"read_weights.{i}": t for i, t in enumerate(self.read_weights)}
        if self.keys is not None and self.values is not None:
            out |= {"keys": self.keys, "values": self.values}
        return out | {f"conv.{name}": t for name, t in self.conv.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "MixerState":
        """Inverse of `tensors()`."""
        memory = {k.removeprefix("memory."): t for k, t in tensors.items() if k.startswith("memory.")}
        count = sum(k.startswith("read_weights.") for k in tensors)
        return cls(
            NeuralMemoryState.from_tensors(memory) if memory else None,
            tuple(tensors[f"read_weights.{i}"] for i in range(count)),
            tensors.get("keys"),
            tensors.get("values"),
            {k.removeprefix("conv."): t for k, t in tensors.items() if k.startswith("conv.")},
        )


def own_storage(tensor: Tensor) -> Tensor:
    """The tensor, copied where it is a small part of a large one, which it would keep in memory."""
    if tensor.untyped_storage().nbytes() > 4 * tensor.numel() * tensor.element_size():
        return tensor.clone()
    return tensor
