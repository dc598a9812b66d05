"""Output of the benchmarks: the file of a run's results, a progress line, tables of text."""

import argparse
import contextlib
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from titanslab.experiments.report import Report
from titanslab.runs.versions import ROOT

RESULTS = ROOT / "benchmarks" / "results"
# Packages that may take part in a measurement. The report has None for one that is not installed.
PACKAGES = (
    "titans-pytorch",
    "titans-unofficial",
    "transformers",
    "triton",
    "fla-core",
    "flash-linear-attention",
    "mamba-ssm",
    "causal-conv1d",
    "flash-attn",
)


def new_report(topic: str, seed: int, device: torch.device, settings: dict[str, Any], path: Path | None) -> Report:
    """The report of a run, written to `path`, or to a new file in benchmarks/results."""
    if path is not None and path.is_dir():
        raise SystemExit(f"--out must name a JSON file, got the folder {path}; give e.g. --out {path / topic}.json")
    date = datetime.datetime.now(datetime.UTC)
    path = path or free_path(RESULTS / f"{date:%Y-%m-%d}_{device_name(device)}_{topic}.json")
    return Report(topic, seed, device, settings, path, PACKAGES)


def settings_of(given: argparse.Namespace, *files: str) -> dict[str, Any]:
    """The arguments of a command as JSON values; of those in `files`, paths or lists of them, the names alone."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
    for key in files:
        value = getattr(given, key)
        settings[key] = [Path(path).name for path in value] if isinstance(value, list) else Path(value).name
    return settings


def device_name(device: torch.device) -> str:
    """A short name for file names, such as `cpu-2core` or `h100`."""
    if device.type == "cuda":
        words = re.findall(r"[a-z]+\d+[a-z]*", torch.cuda.get_device_name(device).lower())
        return words[0] if words else "gpu"
    return f"{device.type}-{torch.get_num_threads()}core"


def free_path(path: Path) -> Path:
    """`path`, or the same with -2, -3, ... if an earlier result has that name."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def transient(text: str) -> None:
    """Print a progress line, which the next one replaces; print nothing if stderr is not a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def clear_transient() -> None:
    transient("")


def human(count: float | None) -> str:
    """A number of bytes in KiB, MiB or GiB; "-" for None."""
    if count is None:
        return "-"
    if abs(count) >= 1 << 30:
        return f"{count / (1 << 30):.2f} GiB"
    return f"{count / (1 << 20):.1f} MiB" if abs(count) >= 1 << 20 else f"{count / 1024:.1f} KiB"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of text, the first aligned left, the others right."""
    cells = [list(header), *([str(c) for c in row] for row in rows)]
    size = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for first, *others in cells:
        padded = [c.rjust(w) for c, w in zip(others, size[1:], strict=True)]
        lines.append("  ".join([first.ljust(size[0]), *padded]))
    lines.insert(1, "  ".join("-" * w for w in size))
    return "\n".join(lines)


@contextlib.contextmanager
def quiet_progress():
    """Clear the progress line when the block ends, by an error too."""
    try:
        yield transient
    finally:
        clear_transient()
