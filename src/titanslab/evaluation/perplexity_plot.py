"""A picture of the loss by position in the context."""

from __future__ import annotations

import math
from pathlib import Path

from titanslab.evaluation.perplexity import PerplexityResult
from titanslab.files import write_whole


def plot_positions(results: list[PerplexityResult], path: Path, title: str) -> None:
    """Draw bits per token over the tokens of context, a line per context length, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for result in results:
        middles = [math.sqrt(bucket.first * bucket.last) for bucket in result.positions]
        bits = [bucket.loss / math.log(2) for bucket in result.positions]
        axes.plot(middles, bits, marker="o", markersize=3.5, label=f"context {result.context_length:,}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of context before the predicted one")
    axes.set_ylabel("bits per token")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
