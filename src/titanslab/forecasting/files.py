"""A forecast as a CSV file that other programs, and `read_series`, can read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from titanslab.files import write_whole
from titanslab.forecasting.forecast import Forecast

DIGITS = "%.9g"  # what float32 holds


def forecast_table(
    forecasts: Sequence[Forecast], time_column: str | None = None, series_column: str | None = None
) -> Any:
    """The rows of forecasts as a pandas DataFrame.

    Columns are the series' id (in a file of several), the time, the columns of values, and after them `NAME-q0.1` for
    each quantile of a column NAME.

    Args:
        forecasts: of `forecast_series`.
        time_column, series_column: names of these columns; None = date and unique_id (with ds for the time), and row
            where rows alone are counted.
    """
    several = len(forecasts) > 1 or bool(forecasts[0].series.name)
    parts = []
    for one in forecasts:
        counted = one.series.times is None or one.series.step is None
        time = "row" if counted else time_column or ("ds" if several else "date")
        columns: dict[str, Any] = {series_column or "unique_id": one.series.name} if several else {}
        columns[time] = one.times
        columns |= {name: one.values[:, i] for i, name in enumerate(one.series.columns)}
        if one.quantiles is not None:
            for i, name in enumerate(one.series.columns):
                columns |= {f"{name}-q{level:g}": one.quantiles[:, i, j] for j, level in enumerate(one.levels)}
        parts.append(pd.DataFrame(columns, index=np.arange(len(one.times))))
    return pd.concat(parts, ignore_index=True)


def write_forecasts(forecasts: Sequence[Forecast], path: Path, **names: str | None) -> None:
    """Write a CSV file of `forecast_table`."""
    write_whole(path, forecast_table(forecasts, **names).to_csv(index=False, float_format=DIGITS))
