"""MAL: memory as a layer, then sliding-window attention (paper §4.3, eqs. 29-31)."""

from torch import Tensor

from titanslab.layers import Attention, RMSNorm
from titanslab.models.call import Call
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState, Update


class MemoryAsLayer(Mixer):
    """A memory sub-layer and an attention sub-layer, each with its norm and its residual (OURS)."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, config.window_size)

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        m, memory = self.remember(self.norm(x), call, state)  # Eq. 30
        qkv = self.attention.projected(self.attention_norm(x + m))
        o, attention = self.attend(self.attention, qkv, call, state, return_state)  # Eq. 31
        return m + o, None if attention is None else MixerState(memory, (), *attention)
