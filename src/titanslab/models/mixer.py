"""`Mixer`: the norm, the persistent tokens and the start of a document, which all token mixers share."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from titanslab.layers import Attention, RMSNorm
from titanslab.memory import NeuralMemory, NeuralMemoryState
from titanslab.models.call import Call
from titanslab.models.config import TitansConfig
from titanslab.models.state import MixerState


class Mixer(nn.Module):
    """Base of the token mixers: they map `x [B, T, hidden]` to the update of `x`, with a `MixerState` in and out.

    `persistent [num_persistent_tokens, hidden_size]` are the learned vectors of §3.3, after the input norm. Attention
    has them as a prefix, and the memory reads them before a document. OURS: each block has its own, and their outputs
    are dropped.
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.persistent: nn.Parameter | None = None
        if config.num_persistent_tokens:
            self.persistent = nn.Parameter(torch.empty(config.num_persistent_tokens, config.hidden_size))
            self.reset_parameters()
        if config.variant != "attention":
            self.memory = NeuralMemory.from_config(config.hidden_size, config.memory)

    def reset_parameters(self) -> None:
        """OURS: persistent tokens of unit variance, the size of the normalised tokens they stand before."""
        if self.persistent is not None:
            nn.init.normal_(self.persistent)

    def document_start(self, call: Call, state: MixerState | None) -> NeuralMemoryState | None:
        """The memory after the persistent tokens, one row; None in a call in which no document starts."""
        if state is not None and call.reset is None:
            return None
        if self.persistent is None or call.stats is None:
            return self.memory.initial_state(1, persistent=self.persistent)
        _, start, stats = self.memory(self.persistent.unsqueeze(0), return_stats=True)
        call.stats["persistent_write"] = stats["write"]
        return start.as_start()

    def remember(self, x: Tensor, call: Call, state: MixerState | None) -> tuple[Tensor, NeuralMemoryState]:
        """Write the call's tokens `x [B, T, hidden]` into the memory, each read right after its own write."""
        y, memory, *stats = self.memory(
            x,
            None if state is None else state.memory,
            lengths=call.lengths,
            reset=call.reset,
            initial=self.document_start(call, state),
            learn=call.learn,
            write_scale=call.write_scale,
            return_stats=call.stats is not None,
        )
        if call.stats is not None:
            call.stats.update(stats[0])
        return y, memory

    def attend(
        self, attention: Attention, qkv: Iterable[Tensor], call: Call, state: MixerState | None, return_state: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Attention of the call's q, k, v `[B, T, hidden]` over the persistent tokens and the window before each."""
        assert call.rotary is not None
        return attention(
            *qkv,
            call.rotary,
            persistent=self.persistent,
            state=None if state is None else state.attention,
            count=call.start,
            lengths=call.lengths,
            documents=call.documents,
            return_state=return_state,
        )
