"""A linear forecaster with a closed form, which can take in more windows at any time."""

from collections.abc import Sequence

import numpy as np

from titanslab.data.series import SeriesWindows


class LinearRegression:
    """Ridge regression from a history to the rows after it, shared by the columns; each window without its mean.

    The sums that its solution depends on grow with every window that is added, so that a refit costs one solution of
    `history_length` equations. A history with a missing value is not learned from.

    Args:
        history, horizon: rows.
        ridge: the penalty on the squared weights, as a multiple of the mean of the matrix' diagonal.
    """

    def __init__(self, history: int, horizon: int, ridge: float = 1e-6) -> None:
        self.ridge = ridge
        self.inputs = np.zeros((history, history))
        self.products = np.zeros((history, horizon))
        self.weight = np.zeros((history, horizon))

    def add(self, past: np.ndarray, future: np.ndarray, whole: np.ndarray) -> None:
        """Learn from windows `past [B, L, C]`, `future [B, H, C]` where bool `whole [B, C]`."""
        mean = past.mean(1, keepdims=True)
        x = np.moveaxis(past - mean, 2, 1)[whole].astype(np.float64)
        y = np.moveaxis(future - mean, 2, 1)[whole].astype(np.float64)
        self.inputs += x.T @ x
        self.products += x.T @ y

    def solve(self) -> None:
        """Fit the weights to all windows added so far."""
        size = len(self.inputs)
        penalty = self.ridge * max(np.trace(self.inputs) / size, 1e-12)
        self.weight = np.linalg.solve(self.inputs + penalty * np.eye(size), self.products)

    def predict(self, past: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Forecasts `[B, H, C]`; a missing value counts as the mean of the observed ones."""
        count = np.maximum(observed.sum(1, keepdims=True), 1)
        mean = np.where(observed, past, 0.0).sum(1, keepdims=True) / count
        x = np.where(observed, past - mean, 0.0)
        return (np.einsum("blc,lh->bhc", x, self.weight) + mean).astype(np.float32)

    @classmethod
    def fit(cls, windows: SeriesWindows, ridge: float = 1e-6, batch_size: int = 1024) -> "LinearRegression":
        """The regression on all windows of a training part."""
        found = cls(windows.context_length, windows.prediction_length, ridge)
        for start in range(0, len(windows), batch_size):
            found.add(*arrays(windows, range(start, min(start + batch_size, len(windows)))))
        found.solve()
        return found


def arrays(windows: SeriesWindows, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories `[B, L, C]`, targets `[B, H, C]` and whether a window's column is whole `[B, C]`."""
    middle = windows.context_length
    both = np.stack([windows.rows_of(i) for i in indices])
    whole = ~np.isnan(both).any(1)
    both = np.nan_to_num(both)
    return both[:, :middle], both[:, middle:], whole
