"""Pictures of an evaluation, as PNG files: loss by position, heat maps of a task, traces of the memories."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from titanslab.evaluation.table import task_order
from titanslab.files import write_whole
from titanslab.tasks.sample import length_label
from titanslab.tasks.table import Task

if TYPE_CHECKING:
    from titanslab.evaluation.perplexity import PerplexityResult, PositionBucket
    from titanslab.evaluation.trace import MemoryTrace

DEPTH_BINS = 10


def plot_positions(lines: Mapping[str, PerplexityResult], path: Path, title: str, by_byte: bool = False) -> None:
    """Draw bits per token over the tokens of context before the predicted one, a line per measurement.

    Args:
        lines: measurements by their names. path: of the PNG file.
        by_byte: draw bits per byte over bytes instead, by the mean length of the text's tokens, for models whose
            tokenizers differ.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, result in lines.items():
        size = result.bytes / result.tokens if by_byte else 1.0
        middles = [size * math.sqrt(bucket.first * bucket.last) for bucket in result.positions]
        bits = [bucket.loss / math.log(2) / size for bucket in result.positions]
        axes.plot(middles, bits, marker="o", markersize=3.5, label=name)
    unit = "byte" if by_byte else "token"
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel=f"{unit}s of context before the predicted {'token' if by_byte else 'one'}", ylabel=f"bits per {unit}"
    )
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path, 150)


def plot_controls(
    lines: Mapping[str, Sequence[PositionBucket]], path: Path, title: str, window_size: int | None
) -> None:
    """Draw the loss in nats per token over the tokens of context, a line for each condition of a graft's controls."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, found in lines.items():
        middles = [math.sqrt(bucket.first * bucket.last) for bucket in found]
        axes.plot(middles, [bucket.loss for bucket in found], marker="o", markersize=3.5, label=name)
    if window_size is not None:
        axes.axvline(window_size, color="grey", linestyle=":", linewidth=1, label=f"window, {window_size} tokens")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens of context before the predicted one", ylabel="loss, nats per token")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path, 150)


def plot_recall(recall: dict[str, dict[int, float]], path: Path, reach: int, chance: float) -> None:
    """Draw the share of facts recalled over their distance in bytes, a line per model.

    Args:
        recall: model -> distance -> share. path: of the PNG file.
        reach: bytes that the models' windows cover. chance: share that guessing gets right.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    distances = list(next(iter(recall.values())))
    for name, values in recall.items():
        axes.plot(list(values), [100 * share for share in values.values()], marker="o", label=name)
    label = f"within the window's reach, {reach} bytes"
    axes.axvspan(min(distances) / 1.5, reach, color="grey", alpha=0.15, linewidth=0, label=label)
    axes.axhline(100 * chance, color="grey", linestyle=":", linewidth=1, label=f"chance, {100 * chance:g} %")
    axes.set(xscale="log", ylim=(-3, 103), xlabel="bytes back to the fact", ylabel="facts recalled, %")
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
    if by_depth and any(record.get("depth") is None for record in records):
        raise ValueError(f"a result of {task.name} has no depth, which its picture needs; ask that sample again")
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


COLUMNS = 600  # of a panel over a whole text; more could not be told apart
STRETCH = 36  # tokens of the panel with words, for a long text
SHORT = 200  # tokens of a text that this panel shows whole
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_trace(trace: MemoryTrace, path: Path, title: str, tokens: Sequence[str]) -> None:
    """Draw the writes over the text and word by word, how far the memories move, and the surprise.

    The panels of eta, alpha and momentum are drawn where these are not zero everywhere.

    Args:
        tokens: the text of each token. The panel with words shows all tokens of a short text, else the `STRETCH` of
            them with the largest writes.
    """
    theta, places = trace.per_token["theta"], trace.places
    length = theta.shape[1]
    short = length <= SHORT
    first, last = (0, length) if short else largest_stretch(theta)
    gates = [name for name in ("eta", "alpha") if np.nan_to_num(trace.per_token[name]).any()]
    panels = 4 + len(gates) + ("eta" in gates)
    figure = Figure(figsize=(max(8.0, 0.11 * length) if short else 8.0, 0.5 + 1.75 * panels), layout="constrained")
    remaining = iter(figure.subplots(panels, 1))

    def panel(heading: str, **settings: Any) -> Any:
        axes = next(remaining)
        axes.set_title(heading, loc="left", fontsize=10, fontweight="bold")
        axes.set(**settings)
        return axes

    def lines(heading: str, x: np.ndarray, rows: np.ndarray, unit: str, style: str = "default") -> Any:
        axes = panel(heading, xlabel="tokens read", ylabel=unit, xlim=(-0.01 * length, 1.01 * length))
        for number, row in enumerate(rows):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(x, row, label=f"block {number + 1}", color=colour, linewidth=1.4, drawstyle=style)
        axes.set_ylim(0, 1.1 * (_largest(rows) or 1.0))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#ddd", linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def squares(heading: str, values: np.ndarray, low: float, high: float, colours: str) -> Any:
        axes = panel(heading)
        extent = (0, length, len(values) - 0.5, -0.5)
        style: Any = {"aspect": "auto", "interpolation": "nearest", "cmap": colours}
        image = axes.imshow(values, vmin=low, vmax=max(high, low + 1e-12), extent=extent, **style)
        named = range(0, len(values), -(-len(values) // 8))  # at most eight names
        axes.set_yticks(named, [f"block {i + 1}" for i in named], fontsize=8)
        figure.colorbar(image, ax=axes, pad=0.01, format="%.3g")
        return axes

    middles, highest = _binned(theta)
    writes = lines("size of the write at each token", middles, highest, "theta", "steps-mid")
    writes.legend(fontsize=8, frameon=False, ncols=6, loc="lower right", bbox_to_anchor=(1.0, 0.97))
    words = squares("word by word", theta[:, first:last], 0.0, _largest(theta), "Oranges")
    if not short:
        writes.axvspan(first, last, color="#F0E442", alpha=0.4, linewidth=0)
        words.set_title("the yellow stretch, word by word", loc="left", fontsize=10, fontweight="bold")
    shown = [token.strip() or token.encode("unicode_escape").decode() for token in tokens[first:last]]
    middles = (np.arange(last - first) + 0.5) * length / (last - first)
    turn = 0 if max(map(len, shown)) == 1 else 90
    words.set_xticks(middles, shown, rotation=turn, fontsize=8, family="monospace", parse_math=False)
    words.tick_params(axis="x", length=0)
    lines("how far the memory is from its start", places, trace.moved, "|M - M₀| / |M₀|")
    for name in gates:
        heading = {"eta": "eta: momentum kept", "alpha": "alpha: share forgotten"}[name]
        squares(heading, _binned(trace.per_token[name])[1], 0.0, _largest(trace.per_token[name]), "viridis")
    if "eta" in gates:
        lines("momentum", places, trace.momentum, "|S| / |M₀|")
    surprise = _binned(trace.per_token["surprise"])[1]
    low, high = (0.0, 1.0) if np.isnan(surprise).all() else np.nanpercentile(surprise, [1, 99])
    last_panel = squares("surprise |f(k) - v|² before the write", surprise, low, high, "magma")
    last_panel.set_xlabel("tokens read")
    figure.suptitle(title, fontsize=11, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a text may hold any character
        _save(figure, path, 120)


def largest_stretch(theta: np.ndarray) -> tuple[int, int]:
    """First and last index (exclusive) of the `STRETCH` tokens with the largest sum of writes, `theta [B, T]`.

    The first four tokens of the text do not count: a model may write at every start. Of several such stretches the
    middle one is taken, so that the writes stand in its middle.
    """
    total = np.nan_to_num(theta, nan=0.0, posinf=0.0, neginf=0.0).max(0)
    total[:4] = 0.0
    sums = np.convolve(total, np.ones(STRETCH), "valid")
    best = int(sums.argmax())
    near = range(best, min(len(sums), best + STRETCH))
    alike = [i for i in near if sums[i] >= 0.999 * sums[best]]
    first = alike[len(alike) // 2]
    return first, first + STRETCH


def _largest(values: np.ndarray) -> float:
    """The largest finite value, 0 if there is none."""
    return float(values[np.isfinite(values)].max(initial=0.0))


def _save(figure: Figure, path: Path, dpi: int) -> None:
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi))


def _binned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in the text and largest finite values `[B, n]` of at most `COLUMNS` runs of tokens; `values [B, T]`."""
    count = values.shape[1]
    edges = np.linspace(0, count, min(count, COLUMNS) + 1).astype(int)[:-1]
    known = np.where(np.isfinite(values), values, -np.inf)
    highest = np.maximum.reduceat(known, edges, axis=1)
    return edges + np.diff([*edges, count]) / 2, np.where(np.isfinite(highest), highest, np.nan)
