"""The baseline: the same trunk with full or sliding-window attention alone."""

import torch
from torch import Tensor, nn

from titanslab.layers import Attention
from titanslab.memory.conv import ShortConv, start_to_recall
from titanslab.models.config import TitansConfig
from titanslab.models.layout import Layout
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState


class AttentionMixer(Mixer):
    """Attention over the persistent tokens and the last `window_size` tokens, or all of them.

    OURS: with `attention_conv_size` its q, k and v have the memory's short convolutions, and start as the memory's
    do, so that a model without a memory can be compared with one that has it from the same start.
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, config.window_size)
        self.convs: nn.ModuleDict | None = None
        if config.attention_conv_size > 1:
            sizes = (config.hidden_size, config.attention_conv_size)
            self.convs = nn.ModuleDict({name: ShortConv(*sizes) for name in "qkv"})
            self.reset_projections()

    @torch.no_grad()
    def reset_projections(self) -> None:
        """As `NeuralMemory.reset_projections`: a query finds what once followed the tokens it ends with."""
        assert self.convs is not None
        hidden = self.attention.q_proj.in_features
        for proj in (self.attention.k_proj, self.attention.v_proj):
            nn.init.normal_(proj.weight, std=hidden**-0.5)
        self.attention.q_proj.weight.copy_(self.attention.k_proj.weight)
        assert self.attention.o_proj is not None
        nn.init.normal_(self.attention.o_proj.weight, std=0.1 * hidden**-0.5)
        start_to_recall(*(conv.weight for conv in self.convs.values() if isinstance(conv, ShortConv)))

    def forward(
        self, x: Tensor, layout: Layout, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        assert layout.rotary is not None
        projected = self.attention.projected(self.norm(x))
        tails: dict[str, Tensor] = {}
        if self.convs is not None:
            before = {} if state is None else state.conv
            made = {
                name: conv(t, before.get(name), layout.lengths, layout.reset)
                for (name, conv), t in zip(self.convs.items(), projected, strict=True)
            }
            projected, tails = tuple(y for y, _ in made.values()), {name: tail for name, (_, tail) in made.items()}
        y, attention = self.attention.over(
            *projected,
            layout.rotary,
            persistent=self.persistent,
            state=None if state is None else state.attention,
            count=layout.start,
            lengths=layout.lengths,
            documents=layout.documents,
            return_state=return_state,
        )
        return y, None if attention is None else MixerState(keys=attention[0], values=attention[1], conv=tails)
