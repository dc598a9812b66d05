"""`MixerState`: the state of one block between calls, as a plain value."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from titanslab.memory import NeuralMemoryState
from titanslab.memory.state import TensorTree


@dataclass(frozen=True, repr=False)
class MixerState(TensorTree):
    """State of one block's token mixer; every tensor has the batch first.

    Args:
        memory: the neural memory after the last token; None for a mixer without a memory.
        read_weights: MAC only, the memory's weights at the start of the running segment, which its reads use.
        keys, values: `[B, H, N_p + L, D]`, attention's persistent tokens and then its last L slots: the tokens of the
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
        """Keys and values, or None for a mixer without attention."""
        return None if self.keys is None or self.values is None else (self.keys, self.values)

    def in_dtype(self, dtype: torch.dtype) -> "MixerState":
        """The same state with keys and values in `dtype`; the memory keeps its own dtype."""
        if self.keys is None or self.values is None:
            return self
        return replace(self, keys=self.keys.to(dtype), values=self.values.to(dtype))


Update = tuple[Tensor, MixerState | None]  # what a mixer adds to `x [B, T, hidden]`, and its new state if it is wanted
