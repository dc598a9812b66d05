"""The answers and reports in the files of results."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks" / "results"
PAPER = "docs/results/paper.json"  # the figures of the paper


@dataclass
class Run:
    """The answers of one trained model.

    Args:
        answers: percent right and number of samples, by (task, length in tokens, memory off).
        parameters: of the model; None where the file does not say.
    """

    answers: dict[tuple[str, int, bool], tuple[float, int]] = field(default_factory=dict)
    parameters: int | None = None

    def percent(self, tasks: Sequence[str], length: int, off: bool = False) -> float | None:
        """Mean over `tasks`; None if one of them was not asked at this length."""
        found = [self.answers.get((task, length, off)) for task in tasks]
        return statistics.fmean(f[0] for f in found if f) if found and all(found) else None


@cache
def load(file: str) -> Any:
    """The report of a `.json` file, or the list of the lines of a `.jsonl` file, `file` below the root."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.endswith(".jsonl") else json.loads(text)


def read_runs(source: str) -> list[Run]:
    """The runs of "FILE#ROW", one for each seed of a report and one for a .jsonl file."""
    file, _, row = source.partition("#")
    if file.endswith(".jsonl"):
        runs = [_run_of_lines(load(file), row)]
    else:
        runs = [_run_of_report(result) for result in load(file)["results"] if result["row"] == row]
    if not any(run.answers for run in runs):
        raise ValueError(f"{source}: the file has no answers of this row")
    return runs


def _run_of_report(result: dict[str, Any]) -> Run:
    run = Run(parameters=result["parameters"])
    for off, cells in ((False, result["cells"]), (True, result["cells_memory_off"])):
        for cell in cells:
            score = next(iter(cell["scores"].values()))
            run.answers[cell["task"], cell["length"], off] = (100 * score, cell["samples"])
    return run


def _run_of_lines(lines: Iterable[dict[str, Any]], row: str) -> Run:
    """The first answer to each question; lines of single samples are counted together."""
    run, single = Run(), dict[tuple[str, int, bool], list[float]]()
    for line in lines:
        if "task" not in line or "at_test" in line or (row and row not in (line.get("model"), line.get("run"))):
            continue
        if line.get("text", "").startswith("bAbI train"):
            continue
        key = (line["task"], line["length"], line.get("memory") == "off")
        if "right_percent" in line:
            run.answers.setdefault(key, (line["right_percent"], line["samples"]))
        else:
            single.setdefault(key, []).append(line["official"] if "official" in line else line["scores"]["contained"])
    run.answers |= {key: (100 * statistics.fmean(scores), len(scores)) for key, scores in single.items()}
    return run


def newest(pattern: str) -> list[str]:
    """Files of benchmarks/results that match, oldest first, of committed code alone."""
    files = [f"benchmarks/results/{path.name}" for path in BENCHMARKS.glob(pattern)]
    return sorted((f for f in files if not load(f)["uncommitted_code"]), key=lambda f: load(f)["date"])
