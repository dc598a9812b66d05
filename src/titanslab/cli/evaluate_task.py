"""What `titans evaluate niah` and `titans evaluate babilong` share: load, run, show, keep."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.cli.errors import Interrupted

if TYPE_CHECKING:
    from titanslab.data.encode import TokenCounter
    from titanslab.evaluation.run_model import TaskRun
    from titanslab.evaluation.run_task import Cell


def default_output(model: str, task: str) -> Path:
    """Where results go when nobody says."""
    return Path(model) / "evaluation" / task


def run_task_verb(
    run: TaskRun,
    make_cells: Callable[[TokenCounter, str], list[Cell]],
    settings: dict[str, Any],
    *,
    kilo: int,
    title: str,
    heat_map: Callable[[Sequence[dict[str, Any]], Path], None],
) -> None:
    """Answer what is left to answer, print its table, write summary.json and heat_map.png of all in the folder."""
    from titanslab.evaluation.run_model import run_model
    from titanslab.runs.loading import find_model_folder
    from titanslab.runs.quiet import quiet_libraries

    folder = find_model_folder(run.model)
    quiet_libraries()
    from rich.console import Console

    from titanslab.evaluation.results import read_records
    from titanslab.evaluation.table import summarise, tables
    from titanslab.files import write_whole

    try:
        records = run_model(run, make_cells, {"model": str(folder.resolve()), **settings})
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; finished answers are in {run.output}, the same command goes on") from None
    everything = read_records(run.output)
    write_whole(run.output / "summary.json", json.dumps(summarise(everything), indent=1) + "\n")
    heat_map(everything, run.output / "heat_map.png")
    summary = summarise(records)
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    for score in summary[0]["scores"]:
        heading = f"{title}: {score}, {run.samples} samples"
        for part in tables(summary, heading, kilo, score, console.width):
            console.print(part)
    console.print(f"written: {run.output}/results.jsonl, summary.json, heat_map.png", soft_wrap=True)
