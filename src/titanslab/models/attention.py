"""The baseline: the same trunk with full or sliding-window attention alone."""

from torch import Tensor

from titanslab.layers import Attention
from titanslab.models.config import TitansConfig
from titanslab.models.layout import Layout
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState


class AttentionMixer(Mixer):
    """Attention over the persistent tokens and the last `window_size` tokens, or all of them."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, config.window_size)

    def forward(
        self, x: Tensor, layout: Layout, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        assert layout.rotary is not None
        y, attention = self.attention(
            self.norm(x),
            layout.rotary,
            persistent=self.persistent,
            state=None if state is None else state.attention,
            count=layout.start,
            lengths=layout.lengths,
            documents=layout.documents,
            return_state=return_state,
        )
        return y, None if attention is None else MixerState(keys=attention[0], values=attention[1])
