"""`Series`: the columns of one time series, row by row."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Series:
    """Values of some columns at equal steps.

    Args:
        values: float64 `[T, C]`; NaN = missing.
        columns: names of the C columns.
        times: datetime64 or int64 `[T]`, or None for a file without a date column.
        step: from one row to the next: an offset of pandas, such as "h", "15min" or "MS", or a whole number; None where
            rows alone are counted.
        name: the series' id in a file of several, else "".
    """

    values: np.ndarray
    columns: tuple[str, ...]
    times: np.ndarray | None = None
    step: str | int | None = None
    name: str = ""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.values.shape[0]

    @property
    def missing(self) -> int:
        """Number of missing values."""
        return int(np.isnan(self.values).sum())

    def cut(self, start: int, stop: int) -> "Series":
        """Rows `start` to `stop - 1`."""
        times = None if self.times is None else self.times[start:stop]
        return Series(self.values[start:stop], self.columns, times, self.step, self.name)

    def times_after(self, rows: int) -> np.ndarray:
        """Times of the `rows` rows after the last; row numbers from T on where the series has no times."""
        if self.times is None:
            return np.arange(self.rows, self.rows + rows)
        if isinstance(self.step, int):
            return self.times[-1] + self.step * np.arange(1, rows + 1)
        if self.step is None:  # rows at unequal times: row numbers
            return np.arange(self.rows, self.rows + rows)
        import pandas as pd

        return pd.date_range(self.times[-1], periods=rows + 1, freq=self.step).to_numpy()[1:]


def describe(series: list[Series], source: Any) -> str:
    """One line about series read from `source`: rows, columns, step and missing values."""
    rows = sum(one.rows for one in series)
    first, missing = series[0], sum(one.missing for one in series)
    count = f"{len(series):,} series, " if len(series) > 1 or first.name else ""
    step = f", step {first.step}" if first.step is not None else ""
    gaps = f", {missing:,} missing value{'s' * (missing > 1)}" if missing else ""
    columns = f"{len(first.columns)} column{'s' * (len(first.columns) > 1)}"
    return f"{source}: {count}{rows:,} rows, {columns}{step}{gaps}"
