"""`TitansForForecasting`: patches of each column of a series through blocks with the memory, and a linear head."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple

from titanslab.layers import RMSNorm
from titanslab.models.block import MIXERS
from titanslab.models.call import Call, make_call
from titanslab.models.channel_mixing import ChannelMixing, EinFFT
from titanslab.models.deltanet import GatedDeltaNetMixer
from titanslab.models.forecast_loss import ForecastingOutput, forecast_loss, forecasts
from titanslab.models.forecasting_config import TitansForecastingConfig
from titanslab.models.pretrained import TitansPreTrainedModel, reset_unless_loaded
from titanslab.models.scaling import InstanceScaling, observed_values
from titanslab.models.state import MixerState, Update

States = tuple[MixerState | None, ...]


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


class Cycle(nn.Module):
    """A learned cycle of each column: rows at the same phase share a value (CycleNet, arXiv 2409.18479)."""

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(length, channels))

    def reset_parameters(self) -> None:
        """Start at zero, as in CycleNet."""
        nn.init.zeros_(self.values)

    def forward(self, time_index: Tensor, rows: int) -> Tensor:
        """Values `[B, rows, C]` of the rows that begin at `time_index [B]`."""
        index = time_index[:, None] + torch.arange(rows, device=time_index.device)
        return self.values[index % self.values.shape[0]]


class TitansForForecasting(TitansPreTrainedModel):
    """A Titans model for forecasting: `past_values [B, T, C]` to `prediction_outputs [B, H, C]`.

    Every column is a row of its own: it is normalised, cut into overlapping patches and embedded; blocks mix along the
    patches (`sequence_module`) and within them (`channel_mixing`); a linear head shared by the columns maps all patches
    to the horizon. The paper puts its memory into SiMBA in Mamba's place for this task. SiMBA's code for time series
    was never published, so that this is a reconstruction; docs/choices.md lists which parts are ours.
    """

    config: TitansForecastingConfig
    config_class = TitansForecastingConfig
    base_model_prefix = ""
    main_input_name = "past_values"
    _no_split_modules = ["ForecastingBlock"]  # noqa: RUF012

    def __init__(self, config: TitansForecastingConfig) -> None:
        super().__init__(config)
        config.check()
        channels, size, horizon = config.num_input_channels, config.hidden_size, config.prediction_length
        self.scaling = InstanceScaling(config.scaling or "none", channels, config.scaling_affine)
        self.cycle = Cycle(config.cycle, channels) if config.cycle else None
        self.patch_embedding = nn.Linear(config.patch_length, size)
        self.position_embedding = nn.Parameter(torch.empty(config.num_patches, size))
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ForecastingBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(size, config.rms_norm_eps)
        self.head_dropout = nn.Dropout(config.head_dropout)
        outputs = max(1, len(config.quantiles))
        self.head = nn.Linear(config.num_patches * size, horizon * outputs)
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

    @can_return_tuple
    def forward(
        self,
        past_values: Tensor,
        past_observed_mask: Tensor | None = None,
        future_values: Tensor | None = None,
        future_observed_mask: Tensor | None = None,
        past_time_index: Tensor | None = None,
        state: States | None = None,
        return_state: bool = False,
        **kwargs: Any,
    ) -> ForecastingOutput:
        """Forecast the rows after `past_values`.

        Args:
            past_values: `[B, context_length, num_input_channels]`, on the scale on which the loss is taken.
            past_observed_mask: `[B, context_length, C]`, 0 = missing. NaN is missing too.
            future_values: `[B, prediction_length, C]`, the targets; with them a loss is returned.
            future_observed_mask: `[B, prediction_length, C]`, 0 = no target. NaN is no target either.
            past_time_index: int64 `[B]`, row number of the first row of the history in its series; for `cycle`.
            state: the `state` of an earlier output: its memories go on from there. The window's own patches are
                read as in any other call: nothing but the memories is carried over.
            return_state: return the state after this history.
        """
        self._check(past_values, past_time_index)
        observed = observed_values(past_values, past_observed_mask)
        x, statistics = self.scaling(past_values.to(self.head.weight.dtype), observed)
        if self.cycle is not None and past_time_index is not None:
            x = torch.where(observed, x - self.cycle(past_time_index, x.shape[1]), 0.0)
        hidden, new = self.encode(x, state, return_state)
        forecast = self._head(hidden, x)
        if self.cycle is not None and past_time_index is not None:
            future = self.cycle(past_time_index + x.shape[1], self.config.prediction_length)
            forecast = forecast + (future if forecast.dim() == 3 else future.unsqueeze(-1))
        forecast = self.scaling.inverse(forecast, statistics)
        loss = None
        if future_values is not None:
            loss = forecast_loss(self.config, forecast, future_values, future_observed_mask)
        point, quantiles = forecasts(self.config, forecast)
        return ForecastingOutput(loss, point, quantiles, new)

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

    def _head(self, hidden: Tensor, x: Tensor) -> Tensor:
        """The forecast on the scale of `x [B, T, C]`: `[B, H, C]`, or `[B, H, C, Q]` with quantiles."""
        count = len(self.config.quantiles)
        out = self.head(self.head_dropout(hidden.flatten(1)))
        if count:
            out = out.unflatten(-1, (-1, count))
        out = out.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        if self.linear_skip is not None:
            skip = self.linear_skip(x.transpose(1, 2)).transpose(1, 2)
            out = out + (skip.unsqueeze(-1) if count else skip)
        return out

    def _check(self, past_values: Tensor, past_time_index: Tensor | None) -> None:
        config = self.config
        shape = (config.context_length, config.num_input_channels)
        if past_values.dim() != 3 or tuple(past_values.shape[1:]) != shape:
            raise ValueError(f"past_values must have shape [B, {shape[0]}, {shape[1]}], got {list(past_values.shape)}")
        if config.cycle and past_time_index is None:
            raise ValueError(
                f"past_time_index is missing, and cycle={config.cycle} needs it: int64 [B], the row number of the "
                "first row of each history"
            )

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
