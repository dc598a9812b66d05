"""Forecasts of a model for windows of a series, batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from titanslab.data.series import SeriesWindows


@dataclass(frozen=True)
class Forecasts:
    """Forecasts and targets of some windows, on the standardised scale; float32.

    Args:
        point, target, observed: `[B, H, C]`; a target that was not observed is 0.
        quantiles: `[B, H, C, Q]`, or None.
    """

    point: np.ndarray
    target: np.ndarray
    observed: np.ndarray
    quantiles: np.ndarray | None


def batch_of(windows: SeriesWindows, indices: Sequence[int], device: Any) -> dict[str, torch.Tensor]:
    """Windows as a batch for a model's forward, on a device."""
    batch = default_collate([windows[i] for i in indices])
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def forecast(model: Any, batch: dict[str, torch.Tensor], **options: Any) -> tuple[Forecasts, Any]:
    """The forecasts of a batch and the state after it; `options` go to the model's forward. Targets are not given."""
    past = {name: tensor for name, tensor in batch.items() if not name.startswith("future_")}
    output = model(**past, **options)
    quantiles = output.quantile_outputs
    found = Forecasts(
        output.prediction_outputs.float().cpu().numpy(),
        batch["future_values"].cpu().numpy(),
        batch["future_observed_mask"].cpu().numpy(),
        None if quantiles is None else quantiles.float().cpu().numpy(),
    )
    return found, getattr(output, "state", None)


def all_forecasts(
    model: Any, windows: SeriesWindows, batch_size: int, device: Any
) -> Iterator[tuple[range, Forecasts]]:
    """The forecasts of all windows in their order; the last batch may be smaller, and none is dropped."""
    for start in range(0, len(windows), batch_size):
        indices = range(start, min(start + batch_size, len(windows)))
        yield indices, forecast(model, batch_of(windows, indices, device))[0]
