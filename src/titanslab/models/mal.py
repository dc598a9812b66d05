"""MAL: memory as a layer, then sliding-window attention (paper §4.3, eqs. 29-31)."""

from torch import Tensor

from titanslab.layers import Attention, RMSNorm
from titanslab.models.call import Layout
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer, make_memory
from titanslab.models.state import MixerState


class MemoryAsLayer(Mixer):
    """A memory sub-layer and an attention sub-layer, each with its norm and its residual (OURS)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.memory = make_memory(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, config.window_size)

    def forward(
        self, x: Tensor, layout: Layout, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        assert layout.rotary is not None
        m, memory = self.memory(  # Eq. 30
            self.norm(x),
            None if state is None else state.memory,
            mask=layout.mask,
            reset=layout.reset,
            initial=self.document_start(layout, state),
            learn=layout.learn,
            write_scale=layout.write_scale,
        )
        o, attention = self.attention(  # Eq. 31
            self.attention_norm(x + m),
            layout.rotary,
            persistent=self.persistent,
            state=None if state is None else state.attention,
            count=layout.start,
            lengths=layout.lengths,
            documents=layout.documents,
            return_state=return_state,
        )
        return m + o, None if attention is None else MixerState(memory, (), *attention)
