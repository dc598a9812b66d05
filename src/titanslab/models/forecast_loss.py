"""Losses of a forecast, over the observed values alone, and the output of every forecasting model."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from titanslab.models.scaling import observed_values


@dataclass
class ForecastingOutput(ModelOutput):
    """Output of a forecasting model.

    Args:
        loss: a scalar, where `future_values` are given.
        prediction_outputs: `[B, H, C]`, the point forecast: the median where quantiles are predicted.
        quantile_outputs: `[B, H, C, Q]`, rising along Q, or None.
        state: one `MixerState` (or None) for each block, on request: what the memories hold after this history.
    """

    loss: Tensor | None = None
    prediction_outputs: Tensor | None = None
    quantile_outputs: Tensor | None = None
    state: tuple[Any, ...] | None = None


def forecast_loss(config: Any, forecast: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """The mean loss over observed values; 0 where none is.

    That of quantiles is twice the pinball loss, so that the median's share is its absolute error.

    Args:
        config: has `loss` and `quantiles`.
        forecast: `[B, H, C]`, or `[B, H, C, Q]` for loss "quantile".
        target: `[B, H, C]`; NaN counts as missing.
        mask: `[B, H, C]`, 0 = missing; or None.
    """
    if target.shape != forecast.shape[:3]:
        raise ValueError(f"future_values must have shape {list(forecast.shape[:3])}, got {list(target.shape)}")
    observed = observed_values(target, mask)
    target = torch.where(observed, target, 0.0)
    if config.loss == "quantile":
        error = target.unsqueeze(-1) - forecast
        levels = torch.tensor(config.quantiles, dtype=forecast.dtype, device=forecast.device)
        losses = 2 * torch.maximum(levels * error, (levels - 1) * error).mean(-1)
    elif config.loss == "mse":
        losses = (forecast - target).square()
    elif config.loss == "mae":
        losses = (forecast - target).abs()
    else:
        losses = F.huber_loss(forecast, target, reduction="none")
    return torch.where(observed, losses, 0.0).sum() / observed.sum().clamp(min=1)


def forecasts(config: Any, forecast: Tensor) -> tuple[Tensor, Tensor | None]:
    """Point forecast `[B, H, C]` and quantiles `[B, H, C, Q]` in rising order, or None."""
    if config.loss != "quantile":
        return forecast, None
    quantiles = forecast.sort(dim=-1).values
    return quantiles[..., list(config.quantiles).index(0.5)], quantiles
