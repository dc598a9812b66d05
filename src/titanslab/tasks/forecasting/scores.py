"""`Scores`: MSE, MAE, pinball loss and coverage of forecasts, summed window by window."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Scores:
    """Sums over the windows added so far; a missing target does not count.

    Sums are float64, so that the size of the batches changes nothing but the last digits of a float32 forecast.

    Args:
        quantiles: levels of the quantile forecasts, rising; empty = none.
    """

    def __init__(self, quantiles: Sequence[float] = ()) -> None:
        self.quantiles = np.array(quantiles, np.float64)
        self.windows = self.count = 0
        self.squared = self.absolute = self.pinball = 0.0
        self.below = np.zeros(len(quantiles))  # targets below each quantile
        self.columns: np.ndarray | None = None  # [3, C]: squared, absolute, count
        self.steps: np.ndarray | None = None  # [2, H]: squared, count

    def add(
        self, forecast: np.ndarray, target: np.ndarray, observed: np.ndarray, quantiles: np.ndarray | None = None
    ) -> None:
        """Add windows: `forecast`, `target`, bool `observed` `[B, H, C]`, and `quantiles [B, H, C, Q]`."""
        error = np.where(observed, forecast.astype(np.float64) - target, 0.0)
        seen = observed.astype(np.float64)
        squared, absolute = error**2, np.abs(error)
        self.windows += len(error)
        self.count += int(observed.sum())
        self.squared += float(squared.sum())
        self.absolute += float(absolute.sum())
        columns = np.stack([part.sum((0, 1)) for part in (squared, absolute, seen)])
        steps = np.stack([part.sum((0, 2)) for part in (squared, seen)])
        self.columns = columns if self.columns is None else self.columns + columns
        self.steps = steps if self.steps is None else self.steps + steps
        if quantiles is not None and len(self.quantiles):
            lack = target[..., None] - quantiles.astype(np.float64)
            loss = np.maximum(self.quantiles * lack, (self.quantiles - 1) * lack)
            self.pinball += float(np.where(observed[..., None], loss, 0.0).sum())
            self.below += ((lack < 0) & observed[..., None]).sum((0, 1, 2))

    def summary(self, columns: Sequence[str]) -> dict[str, Any]:
        """The scores as JSON values; `columns` are the names of the C columns."""
        if not self.count or self.columns is None or self.steps is None:
            raise ValueError("no target of the windows was observed, so that there is no score")
        squared, absolute, seen = self.columns
        each = {
            name: {"mse": float(s / n), "mae": float(a / n)}
            for name, s, a, n in zip(columns, squared, absolute, seen, strict=True)
            if n
        }
        found: dict[str, Any] = {
            "windows": self.windows,
            "targets": self.count,
            "mse": self.squared / self.count,
            "mae": self.absolute / self.count,
            "columns": each,
            "mse_by_step": [float(s / n) if n else None for s, n in self.steps.T],
        }
        if len(self.quantiles):
            found["pinball"] = self.pinball / self.count / len(self.quantiles)
            below = self.below / self.count
            found["below_quantile"] = {f"{q:g}": float(b) for q, b in zip(self.quantiles, below, strict=True)}
            found["coverage"] = {
                f"{1 - 2 * q:.0%}": float(below[-i - 1] - below[i])
                for i, q in enumerate(self.quantiles[: len(below) // 2])
                if np.isclose(q + self.quantiles[-i - 1], 1)
            }
        return found
