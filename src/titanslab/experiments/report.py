"""Writes the JSON of a measurement or study, with its machine and versions, and draws pictures of curves."""

from __future__ import annotations

import datetime
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.files import write_whole
from titanslab.runs.versions import PACKAGES, checkout, machine, package_versions

if TYPE_CHECKING:
    import torch


class Report:
    """The JSON of one run. The file is written again after every result, so an interrupted run keeps its results.

    Args:
        topic: name of the run.
        seed: seed of its samples.
        device: device on which it runs.
        settings: settings of the run, as JSON values.
        path: path of the JSON file.
        packages: names of the packages whose versions it records.
    """

    def __init__(
        self,
        topic: str,
        seed: int,
        device: torch.device,
        settings: dict[str, Any],
        path: Path,
        packages: Sequence[str] = PACKAGES,
    ) -> None:
        self.started = time.perf_counter()
        self.path = path
        commit, changed = checkout()
        self.content: dict[str, Any] = {
            "topic": topic,
            "command": command(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": seed,
            "commit": commit,
            "uncommitted_code": changed,
            "machine": machine(device),
            "versions": package_versions(("titans-lab", *packages)),
            "settings": settings,
            "rates": {},
            "missing": [],
            "results": [],
            "complete": False,
        }

    def missing(self, name: str, reason: str) -> None:
        """Record and print that a candidate or row has no result."""
        self.content["missing"].append({"name": name, "reason": reason})
        say(f"MISSING {name}: {reason}")

    def add(self, result: dict[str, Any]) -> None:
        self.content["results"].append(result)
        self.write()

    def finish(self) -> Path:
        self.content["complete"] = True
        self.content["seconds"] = round(time.perf_counter() - self.started, 1)
        self.content["machine"]["load_average_at_end"] = os.getloadavg()[0]
        self.write()
        say(f"wrote {self.path}")
        return self.path

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")


def command() -> str:
    """The command line that started this process."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        start = ["titans"] if Path(sys.argv[0]).name == "titans" else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def picture(path: Path, panels: Sequence[dict[str, Any]], title: str) -> Path | None:
    """Draw panels of curves with their spread. More than four panels are placed in rows of three.

    Args:
        path: path of the JSON; the picture has the same name with the ending `.png`.
        panels: dictionaries with `title`, the axis labels `x` and `y`, and `curves`: name -> list of
            `(x, median, low, high)`. Optional: `y_range`, the ends of a linear y axis, which replaces the logarithmic
            one; `ticks`: x -> label.
        title: title of the picture.

    Returns:
        Path of the picture, or None if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        say("no picture: matplotlib is not installed (pip install matplotlib)")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = len(panels) if len(panels) <= 4 else 3
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 4.2 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        single = all(len(points) <= 1 for points in panel["curves"].values())
        if single:
            _bars(axis, panel)
        else:
            _lines(axis, panel)
        axis.set_title(panel["title"], fontsize=10)
        axis.grid(alpha=0.3, which="both")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    target = path.with_suffix(".png")
    write_whole(target, lambda draft: figure.savefig(draft, dpi=110, format="png"))
    pyplot.close(figure)
    say(f"wrote {target}")
    return target


def _lines(axis: Any, panel: dict[str, Any]) -> None:
    thin = 1.2  # width of the last line; earlier lines are thicker, so that they stay visible below it
    for order, (name, points) in enumerate(panel["curves"].items()):
        points = sorted(points)
        xs = [p[0] for p in points]
        width = thin + 0.5 * (len(panel["curves"]) - 1 - order)
        style = {"marker": "os^Dv*PX"[order % 8], "markersize": 4 + width, "linewidth": width, "alpha": 0.75}
        (line,) = axis.plot(xs, [p[1] for p in points], label=name, **style)
        axis.fill_between(xs, [p[2] for p in points], [p[3] for p in points], alpha=0.2, color=line.get_color())
    axis.set_xscale("log", base=2)
    places = sorted({p[0] for points in panel["curves"].values() for p in points})
    if len(places) <= 10:
        names = panel.get("ticks", {})
        axis.set_xticks(places, [names.get(x) or _short(x) for x in places], fontsize=8)
    if "y_range" in panel:
        axis.set_ylim(*panel["y_range"])
    else:
        axis.set_yscale("log")
    axis.set_xlabel(panel["x"])
    axis.set_ylabel(panel["y"])
    axis.legend(fontsize=7)


def _short(x: float) -> str:
    """A short label for a number of tokens, such as 512, 2K, 128K or 1M."""
    kilo = 1024 if x >= 1 and math.log2(x).is_integer() else 1000
    for unit, sign in ((kilo**2, "M"), (kilo, "K")):
        if x >= unit:
            return f"{x / unit:.3g}{sign}"
    return f"{x:g}"


def _bars(axis: Any, panel: dict[str, Any]) -> None:
    named = {name: points[0] for name, points in panel["curves"].items() if points}
    names = list(named)
    for at, name in enumerate(names):
        _, middle, low, high = named[name]
        axis.barh(at, middle, xerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]])
        axis.annotate(f" {middle:,.4g}", (middle, at), va="center", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.set_xlabel(panel["y"])
