"""Forecasts after the end of some series, as long as asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titanslab.data.series.scaler import Scaler
from titanslab.data.series.series import Series

ROWS = 256  # rows of a batch times columns


@dataclass(frozen=True)
class Forecast:
    """A forecast of the rows after a series, on the scale of its values.

    Args:
        series: the series before the forecast.
        times: `[H]`, dates, whole numbers or row numbers.
        values: float64 `[H, C]`, the point forecast.
        quantiles: float64 `[H, C, Q]`, rising along Q, or None.
        levels: the Q shares.
        starts: the rows at which the model's single forecasts begin, 0 first; more than one where they are iterated.
    """

    series: Series
    times: np.ndarray
    values: np.ndarray
    quantiles: np.ndarray | None
    levels: tuple[float, ...]
    starts: tuple[int, ...]


@torch.inference_mode()
def forecast_series(
    model: Any, series: Sequence[Series], scalers: Sequence[Scaler], horizon: int, times: Sequence[np.ndarray]
) -> list[Forecast]:
    """Forecast `horizon` rows after the end of each series.

    A horizon beyond the model's own is made of several forecasts: each reads those before it as if they were observed.
    With Q quantiles, Q such histories go on, one along each quantile, and the quantiles of all their forecasts together
    are the next rows; so the quantiles of later rows hold the errors of earlier ones. A shorter horizon is the
    beginning of the model's.

    Args:
        model: a forecasting model in evaluation mode, with as many columns as the series.
        series, scalers, times: with the scale on which the model reads each series, and the times of the new rows. A
            series that is shorter than the model's history begins with missing values.
    """
    config, found = model.config, []
    length, levels = config.history_length, tuple(config.quantiles)
    starts = tuple(range(0, horizon, config.prediction_length))
    size = max(1, ROWS // (config.num_input_channels * max(1, len(levels))))
    for first in range(0, len(series), size):
        part = range(first, min(first + size, len(series)))
        past = [_history(scalers[i].transform(series[i].values), length) for i in part]
        index = torch.tensor([series[i].rows - length for i in part])
        rows = _iterate(model, torch.stack(past), index, starts)[:, :, :horizon]
        for i, paths in zip(part, rows.double().cpu().numpy(), strict=True):
            paths = scalers[i].inverse(paths)  # [Q or 1, H, C]
            quantiles = np.moveaxis(paths, 0, -1) if levels else None
            point = paths[levels.index(0.5) if levels else 0]
            found.append(Forecast(series[i], times[i], point, quantiles, levels, starts))
    return found


def _history(values: np.ndarray, length: int) -> Tensor:
    """The last `length` rows as float32, after rows of NaN where there are fewer."""
    last = values[-length:]
    missing = np.full((length - len(last), values.shape[1]), np.nan)
    return torch.from_numpy(np.concatenate((missing, last)).astype(np.float32))


def _iterate(model: Any, past: Tensor, index: Tensor, starts: Sequence[int]) -> Tensor:
    """Forecasts `[N, Q, rows, C]` after histories `[N, L, C]`, along each quantile; Q = 1 without quantiles."""
    levels = model.config.quantiles
    count, length = past.shape[:2]
    paths, done = past.to(model.device).unsqueeze(1), []
    for start in starts:
        rows = paths.flatten(0, 1)  # [N * paths, L, C]
        observed = ~rows.isnan()
        begin = (index + start).to(rows.device).repeat_interleave(paths.shape[1])
        output = model(torch.where(observed, rows, 0.0), observed, past_time_index=begin)
        if levels:
            values = output.quantile_outputs.float().unflatten(0, (count, -1))  # [N, paths, H, C, Q]
            new = mixture(values, levels).movedim(-1, 1)
        else:
            new = output.prediction_outputs.float().unsqueeze(1)
        done.append(new)
        paths = torch.cat((paths.expand(-1, new.shape[1], -1, -1), new), dim=2)[:, :, -length:]
    return torch.cat(done, dim=2)


def mixture(values: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles `[N, H, C, Q]` of the mixture of forecasts with quantiles `values [N, P, H, C, Q]`.

    P is 1, and the quantiles stay as they are, or Q: forecast p has the probability that a value is nearest to quantile
    p. Each of its quantiles stands for the values that are nearest to it in the same sense.
    """
    if values.shape[1] == 1:
        return values[:, 0]
    level = torch.tensor(levels, dtype=values.dtype, device=values.device)
    edges = torch.cat((level.new_zeros(1), (level[1:] + level[:-1]) / 2, level.new_ones(1)))
    weight = edges.diff()
    points, order = values.movedim(1, -1).flatten(-2).sort(dim=-1)  # [N, H, C, Q * P]
    weights = torch.outer(weight, weight).flatten()[order]
    middle = weights.cumsum(-1) - weights / 2  # the level of each value, in the middle of its weight
    right = torch.searchsorted(middle, level.expand(*middle.shape[:-1], -1).contiguous())
    right = right.clamp(1, middle.shape[-1] - 1)
    low, high = middle.gather(-1, right - 1), middle.gather(-1, right)
    share = ((level - low) / (high - low)).clamp(0, 1)
    return torch.lerp(points.gather(-1, right - 1), points.gather(-1, right), share)
