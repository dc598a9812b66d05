"""`TitansBlock`: a Titans mixer and an MLP, as in Llama."""

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_layers import GradientCheckpointingLayer

from titanslab.layers import RMSNorm, SwiGLU
from titanslab.memory.transforms import transformed
from titanslab.models.baseline import AttentionMixer
from titanslab.models.call import Call
from titanslab.models.config import TitansConfig
from titanslab.models.lmm import MemoryMixer
from titanslab.models.mac import MemoryAsContext
from titanslab.models.mag import MemoryAsGate
from titanslab.models.mal import MemoryAsLayer
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState, Update

MIXERS: dict[str, type[Mixer]] = {
    "lmm": MemoryMixer,
    "mal": MemoryAsLayer,
    "mag": MemoryAsGate,
    "mac": MemoryAsContext,
    "attention": AttentionMixer,
}


class TitansBlock(GradientCheckpointingLayer):
    """Mixer and MLP, each with its norm and its residual."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.config = config
        self.mixer = MIXERS[config.variant](config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size or 0)

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        # PyTorch's plain code of attention has second derivatives and forward mode, its fast code on a CPU has neither.
        if self.config._attn_implementation == "eager" or transformed():
            with sdpa_kernel(SDPBackend.MATH):
                mixed, state = self.mixer(x, call, state, return_state)
        else:
            mixed, state = self.mixer(x, call, state, return_state)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), state
