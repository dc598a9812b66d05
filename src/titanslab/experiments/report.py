"""One JSON file and one picture per measurement, and a table on the screen."""

import contextlib
import datetime
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from titanslab.experiments.machine import ROOT, commit, device_slug, machine, versions

RESULTS = ROOT / "benchmarks" / "results"


class Report:
    """The JSON of one run, written again after every setting: an interrupted run keeps what it has."""

    def __init__(
        self, topic: str, seed: int, device: torch.device, settings: dict[str, Any], path: Path | None = None
    ) -> None:
        self.started = time.perf_counter()
        date = datetime.datetime.now(datetime.UTC)
        if path is not None and path.is_dir():
            raise SystemExit(f"--out must name a JSON file, got the folder {path}; give e.g. --out {path / topic}.json")
        self.path = path or free_path(RESULTS / f"{date:%Y-%m-%d}_{device_slug(device)}_{topic}.json")
        self.content: dict[str, Any] = {
            "topic": topic,
            "command": command(),
            "date": date.isoformat(timespec="seconds"),
            "seed": seed,
            **commit(),
            "machine": machine(device),
            "versions": versions(),
            "settings": settings,
            "rates": {},
            "missing": [],
            "results": [],
            "complete": False,
        }

    def missing(self, name: str, reason: str) -> None:
        """Write down, and say, that a candidate does not take part."""
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
        draft = self.path.with_name(self.path.name + ".part")
        draft.write_text(json.dumps(self.content, indent=1, allow_nan=True) + "\n")
        os.replace(draft, self.path)


def command() -> str:
    """The command as one would type it again."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    start = ["python", "-m", spec.name] if spec is not None else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


def free_path(path: Path) -> Path:
    """`path`, or the same with -2, -3, ... where an earlier result has that name."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def transient(text: str) -> None:
    """A progress line that the next one replaces; nothing where the output is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def clear_transient() -> None:
    transient("")


def human(count: float | None) -> str:
    """Bytes in MiB or GiB."""
    if count is None:
        return "-"
    if abs(count) >= 1 << 30:
        return f"{count / (1 << 30):.2f} GiB"
    return f"{count / (1 << 20):.1f} MiB" if abs(count) >= 1 << 20 else f"{count / 1024:.1f} KiB"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Plain columns, first one left, others right."""
    cells = [list(header), *([str(c) for c in row] for row in rows)]
    size = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for first, *others in cells:
        padded = [c.rjust(w) for c, w in zip(others, size[1:], strict=True)]
        lines.append("  ".join([first.ljust(size[0]), *padded]))
    lines.insert(1, "  ".join("-" * w for w in size))
    return "\n".join(lines)


def picture(path: Path, panels: Sequence[dict[str, Any]], title: str) -> Path | None:
    """Curves with spread, one panel each, beside the JSON; more than four panels stand in rows of three.

    A panel has `title`, `x`, `y` (labels), `curves`: name -> list of `(x, median, low, high)`, and
    `y_range` for a linear axis with these ends instead of a logarithmic one, `ticks`: x -> how to call it.
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
    draft = target.with_name(target.name + ".part")
    figure.savefig(draft, dpi=110, format="png")
    pyplot.close(figure)
    os.replace(draft, target)
    say(f"wrote {target}")
    return target


def _lines(axis: Any, panel: dict[str, Any]) -> None:
    thin = 1.2  # the last line; those before are thicker, so that lines on one another can be told apart
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
    """A count of tokens as people write it: 512, 2K, 128K, 1M."""
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


@contextlib.contextmanager
def quiet_progress():
    """Clears the progress line when a stage ends, also by an error."""
    try:
        yield transient
    finally:
        clear_transient()
