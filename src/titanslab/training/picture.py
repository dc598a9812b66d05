"""The picture of a run: its losses by step, from metrics.jsonl."""

from pathlib import Path
from typing import Any

from titanslab.documents import parse_json
from titanslab.files import write_whole

LABELS = {"loss": "training", "eval_loss": "validation"}


def metric_lines(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; DocumentError for one that is no table."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return [
        parse_json(line, dict[str, Any], origin=f"{metrics}, line {number}", finite=False)
        for number, line in enumerate(lines, 1)
    ]


def draw_losses(metrics: Path, picture: Path, title: str, unit: str = "nats per token") -> None:
    """Draw the losses in a metrics.jsonl over the steps as a PNG file; nothing is drawn where none is logged.

    `unit`: of the losses.
    """
    lines = metric_lines(metrics)
    points = {name: [(line["step"], line[name]) for line in lines if name in line] for name in LABELS}
    if not any(points.values()):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, pairs in points.items():
        if pairs:
            steps, losses = zip(*pairs, strict=True)
            axes.plot(steps, losses, label=LABELS[name], marker="o", markersize=3 if len(steps) < 100 else 0)
    axes.set(xlabel="step", ylabel=f"loss, {unit}")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(picture, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
