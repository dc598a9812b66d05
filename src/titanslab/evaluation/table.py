"""From scored samples to a table and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titanslab.files import write_whole
from titanslab.tasks.sample import length_label


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task and length: number of samples, mean of each score, and the standard error of the first.

    Returns:
        `{task, length, samples, scores: {name: mean}, standard_error}`, by task and length.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["task"], record["length"]), []).append(record)
    rows = []
    for (task, length), members in sorted(groups.items(), key=lambda item: (_task_key(item[0][0]), item[0][1])):
        names = list(members[0]["scores"])
        means = {name: sum(m["scores"][name] for m in members) / len(members) for name in names}
        first = means[names[0]]
        error = math.sqrt(max(0.0, first * (1 - first)) / len(members))
        rows.append(
            {
                "task": task,
                "length": length,
                "samples": len(members),
                "scores": means,
                "standard_error": error,
            }
        )
    return rows


def table(summary: Sequence[dict[str, Any]], title: str, kilo: int = 1024, score: str | None = None) -> Any:
    """A rich table of percentages, tasks down and lengths across.

    Args:
        summary: from `summarise`.
        title: above the table.
        kilo: what `k` stands for in a length.
        score: which score; the first where None. BABILong's average is over qa1 to qa5, where all are there.
    """
    from rich.table import Table

    lengths = sorted({row["length"] for row in summary})
    tasks = sorted({row["task"] for row in summary}, key=_task_key)
    values = {(row["task"], row["length"]): 100 * row["scores"][score or next(iter(row["scores"]))] for row in summary}
    result = Table(title=title)
    result.add_column("%", no_wrap=True)
    for length in lengths:
        result.add_column(length_label(length, kilo), justify="right", no_wrap=True)
    for task in tasks:
        cells = [f"{values[task, n]:.1f}" if (task, n) in values else "" for n in lengths]
        result.add_row(task, *cells)
    five = [f"babilong_qa{n}" for n in range(1, 6)]
    if set(five) <= set(tasks):
        means = []
        for length in lengths:
            found = [values[task, length] for task in five if (task, length) in values]
            means.append(f"{sum(found) / 5:.1f}" if len(found) == 5 else "")
        result.add_row("average qa1-qa5", *means, style="bold")
    return result


def tables(summary: Sequence[dict[str, Any]], title: str, kilo: int, score: str, width: int) -> list[Any]:
    """The same as one table or more, each narrow enough for `width` characters."""
    lengths = sorted({row["length"] for row in summary})
    names = max(len(row["task"]) for row in summary)
    at_once = max(1, (width - max(names, len("average qa1-qa5")) - 4) // 8)  # "100.0", its padding and a line
    parts = [lengths[i : i + at_once] for i in range(0, len(lengths), at_once)]
    return [table([row for row in summary if row["length"] in part], title, kilo, score) for part in parts]


def niah_heat_map(records: Sequence[dict[str, Any]], path: Path, bins: int = 10, kilo: int = 1024) -> None:
    """Write a PNG: length across, depth of the needle down, accuracy as colour, one panel a variant."""
    tasks = sorted({r["task"] for r in records}, key=_task_key)
    lengths = sorted({r["length"] for r in records})
    panels = []
    for task in tasks:
        grid = [[_Mean() for _ in lengths] for _ in range(bins)]
        for r in records:
            if r["task"] == task:
                row = min(bins - 1, int(r["depth"] * bins / 100))
                grid[row][lengths.index(r["length"])].add(_first(r))
        panels.append((task, [[cell.value() for cell in row] for row in grid]))
    labels = [f"{100 * i // bins}-{100 * (i + 1) // bins} %" for i in range(bins)]
    _draw(panels, [length_label(n, kilo) for n in lengths], labels, "depth of the needle", path)


def babilong_heat_map(records: Sequence[dict[str, Any]], path: Path, kilo: int = 1000) -> None:
    """Write a PNG: length across, task down, accuracy as colour."""
    tasks = sorted({r["task"] for r in records}, key=_task_key)
    lengths = sorted({r["length"] for r in records})
    grid = [[_Mean() for _ in lengths] for _ in tasks]
    for r in records:
        grid[tasks.index(r["task"])][lengths.index(r["length"])].add(_first(r))
    panel = ("BABILong", [[cell.value() for cell in row] for row in grid])
    labels = [task.removeprefix("babilong_") for task in tasks]
    _draw([panel], [length_label(n, kilo) for n in lengths], labels, "task", path)


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


def _first(record: dict[str, Any]) -> float:
    return next(iter(record["scores"].values()))


def _task_key(task: str) -> tuple[str, int]:
    stem = task.rstrip("0123456789")
    return stem, int(task[len(stem) :] or 0)


def _draw(
    panels: Sequence[tuple[str, list[list[float]]]],
    columns: Sequence[str],
    rows: Sequence[str],
    row_name: str,
    path: Path,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (2.2 + (1.2 + 0.62 * len(columns)) * len(panels), 1.6 + 0.34 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    image: Any = None
    for axis, (title, grid) in zip(axes, panels, strict=True):
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_title(title)
        axis.set_xlabel("context in tokens")
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        for y, values in enumerate(grid):
            for x, value in enumerate(values):
                if value == value:
                    axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=_ink(value), size=8)
    axes[0].set_ylabel(row_name)
    figure.colorbar(image, ax=list(axes), label="share of right answers")
    write_whole(path, FigureCanvasAgg(figure).print_png)


def _ink(value: float) -> str:
    return "black" if value > 0.6 else "white"
