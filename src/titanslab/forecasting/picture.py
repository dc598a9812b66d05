"""A forecast as a picture: the history, the forecast and its quantiles, a panel for each column of each series."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from titanslab.files import write_whole
from titanslab.forecasting.forecast import Forecast

MOST = 12  # panels
HISTORY, FUTURE = "#444444", "#283593"
SHADES = ("#e3e6f5", "#c5cae9", "#9fa8da", "#7986cb")  # of the quantiles, the widest first


def plot_forecasts(forecasts: Sequence[Forecast], path: Path, title: str, rows: int) -> None:
    """Draw forecasts as a PNG file.

    Args:
        forecasts: of `forecast_series`; the first 12 columns of the first series are drawn, and the title says so where
            there are more.
        path, title: of the picture.
        rows: rows of history to show.
    """
    panels = [(one, i) for one in forecasts for i in range(len(one.series.columns))]
    drawn = panels[:MOST]
    if len(panels) > MOST:
        title += f" (the first {MOST} of {len(panels):,} columns)"
    across = 1 if len(drawn) == 1 else 2 if len(drawn) <= 6 else 3
    down = -(-len(drawn) // across)
    figure = Figure(
        figsize=(7.2 if across == 1 else 5.2 * across, 3.6 if down == 1 else 2.6 * down + 0.5), layout="constrained"
    )
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (one, column) in zip(grid, drawn, strict=False):
        draw(axes, one, column, rows)
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=11)
    handles, labels = grid[0].get_legend_handles_labels()
    columns = min(len(labels), 3 * across)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the dates' locator, which takes more ticks where the span asks for them
        write_whole(path, lambda place: figure.savefig(place, dpi=130, format="png"))


def draw(axes: Any, one: Forecast, column: int, rows: int) -> None:
    """Draw one column of a forecast after the last `rows` rows of its history."""
    series = one.series
    past = series.values[-rows:, column]
    counted = series.times is None or series.step is None
    rows_seen = np.arange(series.rows - len(past), series.rows)
    times = rows_seen if series.times is None or counted else series.times[-len(past) :]
    axes.plot(times, past, color=HISTORY, linewidth=1.1, label="history")
    values, ahead = one.values[:, column], one.times
    if not np.isnan(past[-1]):  # the line goes on from the last observed value
        ahead, values = np.concatenate((times[-1:], ahead)), np.concatenate((past[-1:], values))
    quantiles = np.empty((len(one.times), 0)) if one.quantiles is None else one.quantiles[:, column]
    for (low, high), shade in zip(bands(one.levels), SHADES, strict=False):
        edges, name = (quantiles[:, low], quantiles[:, high]), f"{one.levels[low]:g} to {one.levels[high]:g}"
        axes.fill_between(one.times, *edges, color=shade, linewidth=0, label=f"quantiles {name}")
    axes.plot(ahead, values, color=FUTURE, linewidth=1.5, label="forecast")
    for start in one.starts[1:]:
        axes.axvline(one.times[start], color="grey", linewidth=0.7, linestyle=":")
    axes.set_title(f"{series.name}: {series.columns[column]}" if series.name else series.columns[column], fontsize=10)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.01)
    if counted:
        axes.set_xlabel("row", fontsize=8)
    elif times.dtype.kind == "M":
        locator = AutoDateLocator(maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def bands(levels: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs of places of the quantiles q and 1 - q, the widest first; at most as many as `SHADES`, evenly chosen."""
    place = {round(level, 9): i for i, level in enumerate(levels)}
    found = [(i, place[round(1 - q, 9)]) for q, i in place.items() if q < 0.5 and round(1 - q, 9) in place]
    most = len(SHADES)
    return found if len(found) <= most else [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]
