"""Pictures of an evaluation, as PNG files: loss by position, heat maps of a task, traces of the memories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from titanslab.evaluation.table import task_order
from titanslab.files import write_whole
from titanslab.tasks.sample import length_label
from titanslab.tasks.table import Task

if TYPE_CHECKING:
    from titanslab.evaluation.perplexity import PerplexityResult
    from titanslab.evaluation.trace import MemoryTrace

DEPTH_BINS = 10


def plot_positions(results: list[PerplexityResult], path: Path, title: str) -> None:
    """Draw bits per token over the tokens of context before the predicted one, a line per context length."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for result in results:
        middles = [math.sqrt(bucket.first * bucket.last) for bucket in result.positions]
        bits = [bucket.loss / math.log(2) for bucket in result.positions]
        axes.plot(middles, bits, marker="o", markersize=3.5, label=f"context {result.context_length:,}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of context before the predicted one", ylabel="bits per token")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path, 150)


def plot_recall(recall: dict[str, dict[int, float]], path: Path, reach: int, chance: float) -> None:
    """Draw the share of facts recalled over their distance in bytes, a line per model.

    Args:
        recall: model -> distance -> share. path: of the PNG file.
        reach: bytes that the models' windows cover. chance: share that guessing gets right.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in recall.items():
        axes.plot(list(values), [100 * share for share in values.values()], marker="o", label=name)
    axes.axvline(reach, color="grey", linestyle="--", linewidth=1, label=f"reach of the windows, {reach} bytes")
    axes.axhline(100 * chance, color="grey", linestyle=":", linewidth=1, label=f"chance, {100 * chance:g} %")
    axes.set(xscale="log", ylim=(-3, 103), xlabel="bytes back to the fact", ylabel="facts recalled, %")
    distances = list(next(iter(recall.values())))
    axes.set_xticks(distances, labels=map(str, distances))
    axes.minorticks_off()
    axes.legend()
    _save(figure, path, 110)


def heat_map(records: Sequence[dict[str, Any]], task: Task, path: Path) -> None:
    """Draw the share of right answers with lengths across; `task.picture` names the rows, ten for a depth.

    Args:
        records: of `run_task`; the first score of each counts.
        task: a row of the table of tasks.
        path: of the PNG file.
    """
    names = sorted({record["task"] for record in records}, key=task_order)
    lengths = sorted({record["length"] for record in records})
    by_depth = task.picture == "depth"
    size = (DEPTH_BINS if by_depth else len(names), len(lengths))
    panels = names if by_depth else [task.title]
    sums, counts = np.zeros((len(panels), *size)), np.zeros((len(panels), *size))
    for record in records:
        number = names.index(record["task"])
        row = min(DEPTH_BINS - 1, int(record["depth"] * DEPTH_BINS / 100)) if by_depth else number
        at = (number if by_depth else 0, row, lengths.index(record["length"]))
        sums[at] += next(iter(record["scores"].values()))
        counts[at] += 1
    shares = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    depths = [f"{100 * i // DEPTH_BINS}-{100 * (i + 1) // DEPTH_BINS} %" for i in range(DEPTH_BINS)]
    labels = depths if by_depth else [name.removeprefix(f"{task.name}_") for name in names]
    columns = [length_label(length, task.kilo) for length in lengths]
    width, height = 2.2 + (1.2 + 0.62 * len(columns)) * len(panels), 1.6 + 0.34 * len(labels)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, title, grid in zip(axes, panels, shares, strict=True):
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set(title=title, xlabel="context in tokens")
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(labels)), labels)
        for (y, x), value in np.ndenumerate(grid):
            if not np.isnan(value):
                ink = "black" if value > 0.6 else "white"
                axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=ink, size=8)
    axes[0].set_ylabel("depth of the answer" if by_depth else "task")
    figure.colorbar(image, ax=list(axes), label="share of right answers")
    _save(figure, path, 100)


TITLES = {
    "surprise": "surprise |f(k) - v|²",
    "theta": "theta: size of a write",
    "eta": "eta: momentum kept",
    "alpha": "alpha: share forgotten",
}
COLUMNS = 600  # of a trace's picture; more could not be told apart


def plot_trace(trace: MemoryTrace, path: Path, title: str, tokens: Sequence[str] = ()) -> None:
    """Draw surprise and gates over the text, a row per block, and the memories' norms.

    Args:
        tokens: the text of each token of a short text, to be written under the picture; empty = its place alone.
    """
    figure = Figure(figsize=(max(10.0, 0.11 * len(tokens)), 10.5), layout="constrained")
    axes = figure.subplots(6, 1, sharex=True)
    length = trace.per_token["surprise"].shape[1]
    for axis, (name, label) in zip(axes[:4], TITLES.items(), strict=True):
        values = _binned(trace.per_token[name])
        values = np.where(np.isfinite(values), values, np.nan)
        low, high = (0.0, 1.0) if np.isnan(values).all() else np.nanpercentile(values, [1, 99])
        cmap = "magma" if name == "surprise" else "viridis"
        style: Any = {"aspect": "auto", "interpolation": "nearest", "extent": (0, length, len(values) - 0.5, -0.5)}
        image = axis.imshow(values, cmap=cmap, vmin=low, vmax=max(high, low + 1e-12), **style)
        axis.set_yticks(range(len(values)), [f"block {i + 1}" for i in range(len(values))], fontsize=7)
        axis.set_title(label, fontsize=9, loc="left")
        figure.colorbar(image, ax=axis, pad=0.01, format="%.3g")
    for axis, rows, label in (
        (axes[4], trace.moved, "how far the memory is from where it started: |M - M₀| / |M₀|"),
        (axes[5], trace.momentum, "momentum: |S| / |M₀|"),
    ):
        for i, row in enumerate(rows):
            axis.plot(trace.places, row, label=f"block {i + 1}", linewidth=1.2)
        axis.set_title(label, fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[4].legend(fontsize=7, ncols=6, loc="lower right")
    if tokens:
        texts = [token.replace("$", r"\$") for token in tokens]
        axes[5].set_xticks(np.arange(length) + 0.5, texts, fontsize=7, family="monospace")
        axes[5].tick_params(axis="x", length=0)
    else:
        axes[5].set_xlabel("tokens read")
    figure.suptitle(title, fontsize=10, parse_math=False)
    _save(figure, path, 120)


def _save(figure: Figure, path: Path, dpi: int) -> None:
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi))


def _binned(values: np.ndarray) -> np.ndarray:
    """Means of neighbouring tokens [B, COLUMNS] where `values [B, T]` has more tokens than that."""
    if values.shape[1] <= COLUMNS:
        return values
    edges = np.linspace(0, values.shape[1], COLUMNS + 1).astype(int)[:-1]
    return np.add.reduceat(values, edges, axis=1) / np.diff([*edges, values.shape[1]])
