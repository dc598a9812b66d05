"""Common sense in a study: each trained model runs the tasks of [language] through `titans evaluate language`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.documents import read_json
from titanslab.experiments.record import read_record, write_record

if TYPE_CHECKING:
    from titanslab.experiments.sections import Language

FOLDER, RESULT = "language", "language.json"


def answer_once(run: Path, settings: Language, folder: Path, device: str) -> None:
    """Run the tasks on the model of a run, and write the table's values to language.json in `folder`.

    A file with the same settings is kept. Raises ValueError with the last line of the command where it fails.
    """
    wanted = wanted_settings(settings)
    if read(folder).get("settings") == wanted:
        return
    output = folder / FOLDER
    words = ["evaluate", "language", "--model", str(run), "--tasks", ",".join(settings.tasks), "--output", str(output)]
    words += ["--data", settings.data, "--device", device]
    words += [] if settings.limit is None else ["--limit", str(settings.limit)]
    done = subprocess.run([sys.executable, "-m", "titanslab.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(f"titans evaluate language: {lines[-1] if lines else 'no output'}")
    summary = read_json(output / "summary.json", dict[str, Any])
    content = {"settings": wanted, "results": summary["table"], "average": summary.get("average")}
    write_record(folder / RESULT, content)


def wanted_settings(settings: Language) -> dict[str, Any]:
    """The settings on which the file language.json depends."""
    return {"tasks": settings.tasks, "data": settings.data, "limit": settings.limit}


def read(folder: Path) -> dict[str, Any]:
    """The content of language.json; empty without that file."""
    return read_record(folder / RESULT)
