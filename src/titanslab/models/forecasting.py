"""`TitansForForecasting`: patches of each column of a series through blocks with the memory, and a linear head."""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from titanslab.layers import RMSNorm
from titanslab.models.block import MIXERS
from titanslab.models.call import Call, make_call
from titanslab.models.channel_mixing import ChannelMixing, EinFFT
from titanslab.models.deltanet import GatedDeltaNetMixer
from titanslab.models.forecasting_config import TitansForecastingConfig
from titanslab.models.pretrained import TitansPreTrainedModel, reset_unless_loaded
from titanslab.models.scaling import InstanceScaling
from titanslab.models.series_model import Cycle, SeriesModel, States
from titanslab.models.state import MixerState, Update


class ForecastingBlock(GradientCheckpointingLayer):
    """A token mixer along the patches and a channel mixing, each with its norm, its residual and dropout."""

    def __init__(self, config: TitansForecastingConfig) -> None:
        super().__init__()
        kind = config.sequence_module
        self.mixer: nn.Module | None = None
        if kind != "none":
            self.mixer = GatedDeltaNetMixer(config) if kind == "gated_deltanet" else MIXERS[kind](config)
        self.dropout = nn.Dropout(config.dropout)
        self.channel_mixing = ChannelMixing(config)

    def forward(self, x: Tensor, call: Call, state: MixerState | None = None, return_state: bool = False) -> Update:
        if self.mixer is not None:
            mixed, state = self.mixer(x, call, state, return_state)
            x = x + self.dropout(mixed)
        return self.channel_mixing(x), state if return_state else None


class TitansForForecasting(SeriesModel, TitansPreTrainedModel):
    """A Titans model for forecasting: `past_values [B, T, C]` to `prediction_outputs [B, H, C]`.

    Every column is a row of its own: it is normalised, cut into overlapping patches and embedded; blocks mix along the
    patches (`sequence_module`) and within them (`channel_mixing`); a linear head shared by the columns maps all patches
    to the horizon. The paper puts its memory into SiMBA in Mamba's place for this task. SiMBA's code for time series
    was never published, so that this is a reconstruction; docs/choices.md lists which parts are ours.
    """

    config: TitansForecastingConfig
    config_class = TitansForecastingConfig
    base_model_prefix = ""
    _no_split_modules = ["ForecastingBlock"]  # noqa: RUF012

    def __init__(self, config: TitansForecastingConfig) -> None:
        super().__init__(config)
        config.check()
        size, horizon = config.hidden_size, config.prediction_length
        self.make_series_parts()
        self.patch_embedding = nn.Linear(config.patch_length, size)
        self.position_embedding = nn.Parameter(torch.empty(config.num_patches, size))
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ForecastingBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.num_patches * size, horizon * max(1, len(config.quantiles)))
        self.linear_skip = nn.Linear(config.context_length, horizon) if config.linear_skip else None
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """False: the loss is the mean over a batch's observed values."""
        return super().accepts_loss_kwargs and False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TitansForForecasting):
            init.normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, EinFFT | Cycle | InstanceScaling):
            reset_unless_loaded(module, module.reset_parameters)
        elif module in (self.patch_embedding, self.head, self.linear_skip):
            # OURS: torch's own start. Inputs have unit variance, and the head is as wide as all patches together.
            reset_unless_loaded(module, module.reset_parameters)  # type: ignore[operator]
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)
            if isinstance(module, GatedDeltaNetMixer):
                reset_unless_loaded(module.layer, module.reset_layer)
            elif isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)

    def predict(self, x: Tensor, state: States | None, return_state: bool) -> tuple[Tensor, States | None]:
        """The forecast `[B, C, H * max(1, Q)]` of a normalised history `[B, T, C]`, and the state after it."""
        hidden, new = self.encode(x, state, return_state)
        out = self.head(self.head_dropout(hidden.flatten(1))).unflatten(0, (x.shape[0], -1))
        if self.linear_skip is not None:
            skip = self.linear_skip(x.transpose(1, 2))
            out = out + skip.repeat_interleave(out.shape[-1] // skip.shape[-1], dim=-1)
        return out, new

    def read_window(self, x: Tensor, state: States | None) -> States | None:
        """The state after a normalised window `[B, T, C]` that nothing is forecast from."""
        return self.encode(x, state, True)[1]

    def encode(
        self, x: Tensor, state: States | None = None, return_state: bool = False
    ) -> tuple[Tensor, States | None]:
        """Hidden states `[B * C, num_patches, hidden]` of a normalised history `[B, T, C]`, and the state after it."""
        config = self.config
        last = x[:, -1:].expand(-1, config.patch_stride, -1)
        rows = torch.cat((x, last), dim=1).transpose(1, 2).flatten(0, 1)  # [B * C, T + stride]
        patches = rows.unfold(-1, config.patch_length, config.patch_stride)[:, : config.num_patches]
        hidden = self.embedding_dropout(self.patch_embedding(patches) + self.position_embedding)
        if state is not None:
            self._check_state(state, hidden.shape[0])
        start = None if state is None else torch.zeros(hidden.shape[0], dtype=torch.int64, device=x.device)
        call = make_call(config, hidden, start=start)
        new: list[MixerState | None] = []
        for i, block in enumerate(self.layers):
            hidden, after = block(hidden, call, None if state is None else state[i], return_state)
            new.append(None if after is None else carried(after, config.sequence_module))
        return self.norm(hidden), tuple(new) if return_state else None

    def _check_state(self, state: States, rows: int) -> None:
        if len(state) != len(self.layers):
            raise ValueError(f"state holds {len(state)} blocks, and the model has {len(self.layers)}")
        for block in state:
            if block is not None and block.memory is not None and block.memory.batch_size != rows:
                raise ValueError(
                    f"state holds {block.memory.batch_size} rows, and past_values {rows} (batch x columns)"
                )

    def decay_parameter_names(self) -> list[str]:
        """Parameters that weight decay may act on; the learned cycle and EinFFT's biases are not among them."""
        names = super().decay_parameter_names()
        return names + [name for name, _ in self.named_parameters() if ".weights." in name and "memory" not in name]


def carried(state: MixerState, sequence_module: str) -> MixerState | None:
    """The part of a block's state that the next window goes on with: its memory, at a chunk's boundary.

    Windows overlap, so that the end of one is not the text before the next: convolutions and attention start anew.
    MAC's slots stay, because its state holds the persistent tokens there; a new segment does not read the others.
    """
    if state.memory is None:
        return None
    tails = {name: torch.zeros_like(tail) for name, tail in state.memory.conv.items()}
    memory = type(state.memory)(state.memory.memory.at_boundary(), tails)
    if sequence_module == "mac":
        return MixerState(memory, memory.memory.weights, state.keys, state.values)
    return MixerState(memory)
