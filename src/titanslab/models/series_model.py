"""`SeriesModel`: the forward that all forecasting models share, from raw histories to a loss."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from titanslab.models.forecast_loss import ForecastingOutput, forecast_loss, forecasts
from titanslab.models.scaling import InstanceScaling, observed_values
from titanslab.models.state import MixerState

States = tuple[MixerState | None, ...]


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


class SeriesModel:
    """Mixin: normalisation, cycle, loss and output of a forecasting model, around its `predict`."""

    config: Any
    main_input_name = "past_values"

    def make_series_parts(self) -> None:
        """The modules that all forecasting models share."""
        config = self.config
        channels = config.num_input_channels
        self.scaling = InstanceScaling(config.scaling, channels, config.scaling_affine)
        self.cycle = Cycle(config.cycle, channels) if config.cycle else None

    def predict(self, x: Tensor, state: States | None, return_state: bool) -> tuple[Tensor, States | None]:
        """The forecast `[B, C, H * max(1, Q)]` of a normalised history `[B, T, C]`, step by step with all quantiles."""
        raise NotImplementedError

    def read_window(self, x: Tensor, state: States | None) -> States | None:
        """The state after a normalised window `[B, T, C]` that nothing is forecast from."""
        raise NotImplementedError

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
            past_values: `[B, history_length, num_input_channels]`, on the scale on which the loss is taken. The history
                has `context_length` rows, and as many for each of the config's `memory_windows`.
            past_observed_mask: `[B, history_length, C]`, 0 = missing. NaN is missing too.
            future_values: `[B, prediction_length, C]`, the targets; with them a loss is returned.
            future_observed_mask: `[B, prediction_length, C]`, 0 = no target. NaN is no target either.
            past_time_index: int64 `[B]`, row number of the first row of the history in its series; for `cycle`.
            state: the `state` of an earlier output: its memories go on from there. The window's own patches are
                read as in any other call: nothing but the memories is carried over.
            return_state: return the state after this history.
        """
        config = self.config
        shape = (config.history_length, config.num_input_channels)
        if past_values.dim() != 3 or tuple(past_values.shape[1:]) != shape:
            raise ValueError(f"past_values must have shape [B, {shape[0]}, {shape[1]}], got {list(past_values.shape)}")
        if config.cycle and past_time_index is None:
            raise ValueError(
                f"past_time_index is missing, and cycle={config.cycle} needs it: int64 [B], the row number of the "
                "first row of each history"
            )
        observed = observed_values(past_values, past_observed_mask)
        dtype: torch.dtype = self.dtype  # type: ignore[attr-defined]
        wide = torch.promote_types(dtype, torch.float32)  # of the scaling and of the forecast
        values, size = past_values.to(wide), config.context_length
        parts = zip(values.split(size, 1), observed.split(size, 1), strict=True)
        for i, (window, there) in enumerate(parts):
            last = (i + 1) * size == values.shape[1]
            index = None if past_time_index is None else past_time_index + i * size
            x, statistics = self._normalised(window, there, index)
            if not last:  # the memories read this window, and nothing is forecast from it
                state = self.read_window(x.to(dtype), state)
        forecast, new = self.predict(x.to(dtype), state, return_state)
        forecast = forecast.to(wide).unflatten(-1, (config.prediction_length, -1)).transpose(1, 2)  # [B, H, C, Q or 1]
        if self.cycle is not None and index is not None:
            forecast = forecast + self.cycle(index + size, config.prediction_length).unsqueeze(-1)
        forecast = self.scaling.inverse(forecast, statistics)
        if not config.quantiles:
            forecast = forecast.squeeze(-1)
        loss = None
        if future_values is not None:
            loss = forecast_loss(config, forecast, future_values, future_observed_mask)
        point, quantiles = forecasts(config, forecast)
        return ForecastingOutput(loss, point, quantiles, new)

    def _normalised(
        self, values: Tensor, observed: Tensor, time_index: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """A window `[B, T, C]` without its scale and its cycle, and the scale's statistics."""
        x, statistics = self.scaling(values, observed)
        if self.cycle is not None and time_index is not None:
            x = torch.where(observed, x - self.cycle(time_index, x.shape[1]), 0.0)
        return x, statistics
