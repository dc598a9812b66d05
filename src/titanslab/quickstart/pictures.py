"""The quickstart's two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

CURVES = (
    ("loss", "inner loss"),
    ("theta", "theta: learning rate"),
    ("eta", "eta: kept"),
    ("alpha", "alpha: forgotten"),
)


def draw_recall(path: Path, recall: dict[str, dict[int, float]], reach: int, chance: float) -> None:
    """Recall by distance, a line per model, with the window's reach and chance."""
    axes, figure = _figure(7.0, 4.0, 1)
    for name, values in recall.items():
        axes[0].plot(list(values), [100 * share for share in values.values()], marker="o", label=name)
    axes[0].axvline(reach, color="grey", linestyle="--", linewidth=1, label=f"reach of the windows, {reach} bytes")
    axes[0].axhline(100 * chance, color="grey", linestyle=":", linewidth=1, label=f"chance, {100 * chance:g} %")
    axes[0].set(xscale="log", ylim=(-3, 103), xlabel="bytes back to the fact", ylabel="facts recalled, %")
    axes[0].set_xticks(list(next(iter(recall.values()))), labels=[str(d) for d in next(iter(recall.values()))])
    axes[0].minorticks_off()
    axes[0].legend()
    _save(figure, path)


def draw_surprise(path: Path, stats: list[dict[str, Tensor]], text: str) -> None:
    """Gates and inner loss at each byte of a passage, a line per block; the passage stands under it."""
    axes, figure = _figure(max(8.0, 0.11 * len(text)), 7.0, len(CURVES))
    for axis, (name, label) in zip(axes, CURVES, strict=True):
        for block, values in enumerate(stats):
            axis.plot(values[name].tolist(), linewidth=1, label=f"block {block + 1}")
        axis.set(ylabel=label, xlim=(-1, len(text)))
        if name == "alpha":
            axis.set_yscale("log")
    axes[0].legend(loc="upper right")
    axes[-1].set_xticks(range(len(text)), labels=list(text.replace("$", r"\$")), fontsize=7, family="monospace")
    axes[-1].tick_params(axis="x", length=0)
    _save(figure, path)


def _figure(width: float, height: float, rows: int) -> tuple[list[Any], Any]:
    # not pyplot: it would choose a screen, and keep the figure for later
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]), figure


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, format="png")
