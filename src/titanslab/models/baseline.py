"""The baseline: the same trunk with full or sliding-window attention alone."""

from torch import Tensor, nn

from titanslab.layers import Attention
from titanslab.memory.conv import ShortConv
from titanslab.memory.start import start_projections
from titanslab.models.call import Call
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState, Update


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

    def reset_projections(self) -> None:
        """As a `NeuralMemory` does, for a model with convolutions."""
        attention = self.attention
        assert self.convs is not None
        assert attention.o_proj is not None
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        taps = [conv.weight for conv in self.convs.values() if isinstance(conv, ShortConv)]
        start_projections([projection.weight for projection in projections], taps)

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        qkv = dict(zip("qkv", self.attention.projected(self.norm(x)), strict=True))
        tails: dict[str, Tensor] = {}
        if self.convs is not None:
            before = {} if state is None else state.conv
            for name, conv in self.convs.items():
                qkv[name], tails[name] = conv(qkv[name], before.get(name), call.lengths, call.reset)
        y, attention = self.attend(self.attention, qkv.values(), call, state, return_state)
        return y, None if attention is None else MixerState(None, (), *attention, tails)
