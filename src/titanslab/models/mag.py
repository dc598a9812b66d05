"""MAG: sliding-window attention and the memory side by side, joined by a gate (paper §4.2, eqs. 26-28)."""

from torch import Tensor, nn

from titanslab.layers import Attention, MemoryGate
from titanslab.models.call import Call
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState, Update


class MemoryAsGate(Mixer):
    """`o_proj(gate(attention(norm(x)), M(norm(x))))`."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.attention = Attention(
            config.hidden_size, config.num_attention_heads, config.window_size, project_output=False
        )
        self.gate = MemoryGate(config.hidden_size, config.gate_type, config.rms_norm_eps)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        x = self.norm(x)
        qkv = self.attention.projected(x)
        y, attention = self.attend(self.attention, qkv, call, state, return_state)  # Eqs. 26, 27
        m, memory = self.remember(x, call, state)
        o = self.o_proj(self.gate(y, m))  # Eq. 28
        return o, None if attention is None else MixerState(memory, (), *attention)
