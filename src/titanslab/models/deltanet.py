"""Gated DeltaNet of transformers in the memory's place: the baseline's token mixer."""

import math
from inspect import signature

import torch
from torch import Tensor, nn
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from titanslab.models.call import Call
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer
from titanslab.models.state import MixerState, Update

STEPS = (1e-3, 1e-1)  # range of the initial steps in the code of its authors
LARGEST_DECAY = 16.0


class GatedDeltaNetMixer(Mixer):
    """`y = GatedDeltaNet(norm(x))` with heads as wide as the memory's; persistent tokens stand before each row.

    The layer starts as in its authors' code; transformers sets every `dt_bias` to 1, with which most heads forget
    within a token. It takes and returns no state.
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        heads, width = config.memory.num_heads, config.memory_head_dim
        layer = Qwen3NextConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=1,
            linear_num_key_heads=heads,
            linear_num_value_heads=heads,
            linear_key_head_dim=width,
            linear_value_head_dim=width,
            layer_types=["linear_attention"],
            rms_norm_eps=config.rms_norm_eps,
        )
        self.layer = Qwen3NextGatedDeltaNet(layer, 0)

    @torch.no_grad()
    def reset_layer(self) -> None:
        """Draw decays and steps of the heads as the authors' code does, and the convolution's taps as torch does."""
        nn.init.uniform_(self.layer.A_log, 0.01, LARGEST_DECAY).log_()
        low, high = (math.log(step) for step in STEPS)
        step = torch.exp(low + (high - low) * torch.rand_like(self.layer.dt_bias))
        self.layer.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.layer.conv1d.reset_parameters()
        nn.init.ones_(self.layer.norm.weight)

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        x = self.norm(x)
        size = 0 if self.persistent is None else self.persistent.shape[0]
        if self.persistent is not None:
            x = torch.cat((self.persistent.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)
        return self.layer(x, **self._chunk(x))[:, size:], None

    def _chunk(self, x: Tensor) -> dict[str, int]:
        """The chunk of transformers' PyTorch code, which pads short rows to 64 tokens by default; the same function."""
        if x.device.type != "cpu" or "kwargs" not in signature(self.layer.forward).parameters:
            return {}
        return {"chunk_size": min(64, 1 << (x.shape[1] - 1).bit_length())}
