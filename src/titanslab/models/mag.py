"""MAG: sliding-window attention and the memory side by side, joined by a gate (paper §4.2, eqs. 26-28)."""

from torch import Tensor, nn

from titanslab.layers import Attention, MemoryGate
from titanslab.models.call import Layout
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer, make_memory
from titanslab.models.state import MixerState


class MemoryAsGate(Mixer):
    """`o_proj(gate(attention(norm(x)), M(norm(x))))`."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.memory = make_memory(config)
        self.attention = Attention(
            config.hidden_size, config.num_attention_heads, config.window_size, project_output=False
        )
        self.gate = MemoryGate(config.hidden_size, config.gate_type, config.rms_norm_eps)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        assert layout.rotary is not None
        x = self.norm(x)
        y, attention = self.attention(  # Eq. 27; Eq. 26 is the persistent prefix
            x,
            layout.rotary,
            persistent=self.persistent,
            state=None if state is None else state.attention,
            count=layout.start,
            lengths=layout.lengths,
            documents=layout.documents,
            return_state=return_state,
        )
        m, memory = self.memory(
            x,
            None if state is None else state.memory,
            mask=layout.mask,
            reset=layout.reset,
            initial=self.document_start(layout, state),
            learn=layout.learn,
            write_scale=layout.write_scale,
        )
        o = self.o_proj(self.gate(y, m))  # Eq. 28
        return o, None if attention is None else MixerState(memory, (), *attention)
