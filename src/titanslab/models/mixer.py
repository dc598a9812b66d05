"""`Mixer`: the norm, the persistent tokens and the start of a document, which all token mixers share."""

import torch
from torch import Tensor, nn

from titanslab.layers import RMSNorm
from titanslab.memory import NeuralMemory, NeuralMemoryState
from titanslab.models.call import Layout
from titanslab.models.config import TitansConfig
from titanslab.models.state import MixerState


def make_memory(config: TitansConfig) -> NeuralMemory:
    """The neural memory that a config describes."""
    return NeuralMemory.from_config(config.hidden_size, config.memory)


class Mixer(nn.Module):
    """Base of the token mixers: they map `x [B, T, hidden]` to the update of `x`, with a `MixerState` in and out.

    `persistent [num_persistent_tokens, hidden_size]` are the learned vectors of §3.3, after the input norm. Attention
    has them as a prefix, and the memory reads them before a document. OURS: each block has its own, and their outputs
    are dropped.
    """

    memory: NeuralMemory

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.persistent: nn.Parameter | None = None
        if config.num_persistent_tokens:
            self.persistent = nn.Parameter(torch.empty(config.num_persistent_tokens, config.hidden_size))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """OURS: persistent tokens of unit variance, the size of the normalised tokens they stand before."""
        if self.persistent is not None:
            nn.init.normal_(self.persistent)

    def document_start(self, layout: Layout, state: MixerState | None) -> NeuralMemoryState | None:
        """The memory after the persistent tokens, one row; None in a call in which no document starts."""
        if state is not None and layout.reset is None:
            return None
        return self.memory.initial_state(1, persistent=self.persistent)

    def forward(
        self, x: Tensor, layout: Layout, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        raise NotImplementedError
