"""Models of a study that a verb of `titans evaluate` measures, such as forecasts and classifiers of DNA."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.documents import read_json
from titanslab.experiments.record import read_record, write_record

if TYPE_CHECKING:
    from titanslab.experiments.sections import Score

FOLDER, RESULT = "score", "score.json"


def measure_once(run: Path, settings: Score, folder: Path, device: str) -> None:
    """Run the verb on the model of a run, and write its summary to score.json in `folder`.

    A file with the same settings is kept. The predictions that the verb writes are deleted, since those of a study take
    many GB; the same verb writes them again. Raises ValueError with the last line of the command where it fails, and
    for a summary without one of `settings.values`.
    """
    wanted = wanted_settings(settings)
    if read(folder).get("settings") == wanted:
        return
    output = folder / FOLDER
    words = ["evaluate", settings.verb, "--model", str(run), "--output", str(output), "--device", device]
    words += [] if settings.data is None else ["--data", settings.data]
    words += settings.flags
    done = subprocess.run([sys.executable, "-m", "titanslab.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(f"titans evaluate {settings.verb}: {lines[-1] if lines else 'no output'}")
    summary = read_json(output / "summary.json", dict[str, Any])
    for name in settings.values:
        if not isinstance(summary.get(name), int | float):
            raise ValueError(f"titans evaluate {settings.verb} writes no number {name!r} to its summary")
    write_record(folder / RESULT, {"settings": wanted, "results": summary})
    shutil.rmtree(output)


def wanted_settings(settings: Score) -> dict[str, Any]:
    """The settings on which the file score.json depends."""
    return {"verb": settings.verb, "data": settings.data, "flags": settings.flags}


def read(folder: Path) -> dict[str, Any]:
    """The content of score.json; empty without that file."""
    return read_record(folder / RESULT)
