"""A `MemoryTrace` as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from titanslab.evaluation.trace import MemoryTrace
from titanslab.files import write_whole

TITLES = {
    "surprise": "surprise |f(k) - v|²",
    "theta": "theta: size of a write",
    "eta": "eta: momentum kept",
    "alpha": "alpha: share forgotten",
}
COLUMNS = 600  # more than a picture can show


def plot_trace(trace: MemoryTrace, path: Path, title: str) -> None:
    """Surprise and gates over the text, a row per block, and the memories' norms, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 10.5), layout="constrained")
    axes = figure.subplots(6, 1, sharex=True)
    tokens = trace.per_token["surprise"].shape[1]
    for axis, (name, label) in zip(axes[:4], TITLES.items(), strict=True):
        values = _binned(trace.per_token[name])
        values = np.where(np.isfinite(values), values, np.nan)
        low, high = (0.0, 1.0) if np.isnan(values).all() else np.nanpercentile(values, [1, 99])
        image = axis.imshow(
            values,
            aspect="auto",
            interpolation="nearest",
            cmap="magma" if name == "surprise" else "viridis",
            extent=(0, tokens, len(values) - 0.5, -0.5),
            vmin=low,
            vmax=max(high, low + 1e-12),
        )
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
    axes[5].set_xlabel("tokens read")
    figure.suptitle(title, fontsize=10, parse_math=False)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def _binned(values: np.ndarray) -> np.ndarray:
    """Means of neighbours where there are more tokens than columns."""
    if values.shape[1] <= COLUMNS:
        return values
    edges = np.linspace(0, values.shape[1], COLUMNS + 1).astype(int)[:-1]
    return np.add.reduceat(values, edges, axis=1) / np.diff([*edges, values.shape[1]])
