"""The pictures of docs/results.md, as SVG files of at most 700 px width on a white ground."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# A line of a picture: values of x and y, lowest and highest y.
Points = Sequence[tuple[float, float, float, float]]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    "MAC": "#D55E00",
    "LMM": "#0072B2",
    "MAL": "#009E73",
    "MAG": "#CC79A7",
    "full attention": "#333333",
    "full attention, memory's initial values": "#333333",
    "gated DeltaNet, memory's initial values": "#E69F00",
    "window of 64": "#888888",
    "paper: MAC": "#D55E00",
    "paper: LMM": "#0072B2",
    "titans-lab": "#D55E00",
    "titans-pytorch": "#0072B2",
}
MARKERS = {"MAC": "o", "LMM": "s", "MAL": "^", "MAG": "D", "titans-lab": "o", "titans-pytorch": "s"}
STYLE: Any = {
    "svg.hashsalt": "titans-lab",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def recall(lines: Mapping[str, Points], labels: Mapping[int, str], trained: int, title: str, path: Path) -> None:
    """Draw percent right over length, with the range over the seeds, and the lengths of training shaded."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.subplots()
        for name, points in lines.items():
            _line(axes, name, points)
        axes.set(xscale="log", ylim=(-4, 106), ylabel="right answers, %", xlabel="length of the text in tokens")
        axes.set_xticks(list(labels), list(labels.values()))
        left = min(labels) * 0.8
        axes.axvspan(left, trained, color="#F0E442", alpha=0.3, linewidth=0)
        axes.text(trained * 0.96, 50, "trained on", rotation=90, ha="right", va="center", fontsize=8.5, color="#555555")
        axes.set_xlim(left, max(labels) * 1.25)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5, frameon=False)
        _finish(figure, axes, path)


def speed(bars: Sequence[tuple[str, float, float, float]], lines: Mapping[str, Points], path: Path) -> None:
    """Draw the ratios to the peers as bars with their range, and tokens a second over length."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        for y, (label, value, low, high) in enumerate(bars):
            left.barh(y, value, color=COLOURS["titans-lab"], height=0.55)
            left.errorbar(value, y, xerr=[[value - low], [high - value]], color="#333333", capsize=3, linewidth=1)
            left.text(high * 1.02 + 0.8, y, f"{value:.1f}x", va="center", fontweight="bold")
            left.text(0, y - 0.36, label, va="bottom", fontsize=8.5)
        left.set(xlim=(0, 1.25 * max(high for *_, high in bars)), ylim=(len(bars) - 0.55, -0.65))
        left.set(xlabel="times the speed of the peer")
        left.set_yticks([])
        left.set_title("Memory layer against peers")
        for name, points in lines.items():
            _line(right, name, points)
        lengths = [x for x, *_ in next(iter(lines.values()))]
        right.set(xscale="log", yscale="log", xlabel="length of the text in tokens", ylabel="tokens a second")
        right.set_xticks(lengths, [f"{n:,.0f}" for n in lengths])
        right.set_yticks([100, 1000, 10000, 100000], ["100", "1,000", "10,000", "100,000"])
        right.set_ylim(90, 110000)
        right.set_title("One layer over length")
        right.legend(fontsize=8.5, frameon=False)
        _finish(figure, right, path)


def training(lines: Mapping[str, Points], others: Mapping[str, Points], path: Path) -> None:
    """Draw the speed of a training step as a multiple of full attention's, over length.

    Args:
        lines: of one run.
        others: points of runs on another machine, which get hollow markers and no line.
        path: of the picture.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.subplots()
        for name, points in lines.items():
            _line(axes, name, points)
        for name, points in others.items():
            x, y, *_ = zip(*points, strict=True)
            axes.plot(x, y, MARKERS[name], markersize=6, color=COLOURS[name], fillstyle="none", zorder=3)
        axes.plot([], [], "o", markersize=6, color="#333333", fillstyle="none", label="slower CPU")
        axes.axhline(1, color="#333333", linestyle="--", linewidth=1)
        lengths = sorted({x for points in (*lines.values(), *others.values()) for x, *_ in points})
        axes.text(lengths[0], 1.04, "full attention", fontsize=8.5, va="bottom", color="#333333")
        axes.set(xscale="log", yscale="log", xlabel="tokens of a row", ylabel="times full attention's speed")
        axes.set_xticks(lengths, [f"{n:,.0f}" for n in lengths])
        axes.set_yticks([0.25, 0.5, 1, 2, 4, 8], ["0.25x", "0.5x", "1x", "2x", "4x", "8x"])
        axes.set_ylim(0.25, 9)
        axes.set_title("Training step of tiny models of equal size")
        axes.legend(fontsize=8.5, frameon=False)
        _finish(figure, axes, path)


def positions(lines: Mapping[str, Points], trained: int, title: str, path: Path) -> None:
    """Draw the loss by tokens of context; a name that ends with ", carried" is the dashed line of its model."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.0), layout="constrained")
        axes = figure.subplots()
        for name, points in lines.items():
            x, y, *_ = zip(*points, strict=True)
            model, _, how = name.partition(",")
            style = "--" if how.endswith("carried") else "-"
            colour = COLOURS.get(model, "#E69F00" if "Delta" in model else "#888888")
            axes.plot(x, y, style, marker=MARKERS.get(model, "v"), markersize=5, color=colour, label=name)
        axes.axvspan(0, trained, color="#F0E442", alpha=0.3, linewidth=0)
        axes.set(xscale="log", xlabel="tokens of context, up to", ylabel="loss in nats")
        ends = sorted({x for points in lines.values() for x, *_ in points})
        axes.set_xticks(ends, [f"{end // 1024}K" if end >= 1024 else str(end) for end in ends])
        axes.set_xlim(ends[0] * 0.9, ends[-1] * 1.1)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
        _finish(figure, axes, path)


def _line(axes: Axes, name: str, points: Points) -> None:
    x, y, low, high = zip(*points, strict=True)
    paper = name.startswith("paper")
    attention = name.startswith(("full", "window", "gated"))
    style = ":" if paper else "--" if attention else "-"
    marker = "x" if paper else "v" if attention else MARKERS.get(name, "o")
    colour = COLOURS.get(name, "#333333")
    label = f"the paper's {name.removeprefix('paper: ')}, at its own size" if paper else name
    axes.plot(x, y, style, marker=marker, markersize=5, color=colour, label=label, clip_on=False, zorder=3)
    if low != high:  # the spread over seeds or turns
        axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.6)


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
