"""`Scaler`: z-scores by the training rows, as scikit-learn's StandardScaler computes them."""

from dataclasses import dataclass

import numpy as np

LEAST = 10 * np.finfo(np.float64).eps  # a deviation below this share of the mean is rounding: the column is constant


@dataclass(frozen=True)
class Scaler:
    """`(values - mean) / std` for each column; float64 `[C]` each. A constant column has std 1."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray) -> "Scaler":
        """The scaler of `values [T, C]`; missing values do not count, and a column without any value has mean 0."""
        observed = ~np.isnan(values)
        count = np.maximum(observed.sum(0), 1)
        mean = np.where(observed, values, 0.0).sum(0) / count
        centred = np.where(observed, values - mean, 0.0)
        std = np.sqrt((centred**2).sum(0) / count)
        return cls(mean, np.where(std <= LEAST * np.abs(mean), 1.0, std))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Values on the standardised scale; NaN stays NaN."""
        return (values - self.mean) / self.std

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Standardised values `[..., C]` on the scale of the data."""
        return values * self.std + self.mean
