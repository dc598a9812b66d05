"""From a work folder of long-context runs to figures, a markdown table and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titanslab.evaluation.table import summarise
from titanslab.experiments.report import picture
from titanslab.experiments.row import EVALUATION, KILO, LATE, LESSON, OFF, RUN
from titanslab.tasks.sample import length_label

MEMORY_OFF = ", memory off"
SECOND_STAGE = ", second stage"
ORDER = ("lmm", "mal", "mag", "mac", "window", "attention", "gated_deltanet")


def collect(work: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Every row and seed of a work folder, finished or not.

    Returns:
        results, one a finished run: row, seed, parameters, training, lessons before it, cells; and those missing with
        the reason.
    """
    results, missing = [], []
    for folder in sorted(work.glob("*-seed*")):
        row, _, seed = folder.name.rpartition("-seed")
        for stage, suffix in (("", ""), (LATE, SECOND_STAGE)):
            run = folder / (RUN + stage)
            if stage and not run.exists():
                continue
            if not (run / "result.json").exists():
                missing.append((folder.name + suffix, f"training is not finished; see {folder / 'log.txt'}"))
                continue
            results.append(
                {
                    "row": row + suffix,
                    "seed": int(seed),
                    "parameters": count_parameters(run),
                    "training": training(run),
                    "lessons": [] if stage else [training(lesson) for lesson in sorted(folder.glob(f"{LESSON}*"))],
                    "cells": _cells(folder / (EVALUATION + stage)),
                    "cells_memory_off": _cells(folder / (OFF + stage)),
                }
            )
    return sorted(results, key=lambda r: (_place(r["row"]), r["seed"])), missing


def training(run: Path) -> dict[str, Any]:
    """How a run went: steps, tokens, seconds of training over all sessions, losses, commit and versions."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    seconds, before = 0.0, 0
    for line in logged:
        if line.get("tokens_per_second"):
            seconds += (line["tokens"] - before) / line["tokens_per_second"]
        before = line["tokens"]
    facts = json.loads((run / "versions.json").read_text())
    result = json.loads((run / "result.json").read_text())
    return {
        "steps": result["steps"],
        "tokens": result["tokens"],
        "seconds": round(seconds, 1),
        "final_loss": result["loss"],
        "losses": [[line["step"], round(line["loss"], 4)] for line in logged],
        "recipe": (run / "recipe.toml").read_text(),
        "versions": facts,
    }


def count_parameters(run: Path) -> int:
    """Parameters of a saved model, tied ones once, from the file's header."""
    from safetensors import safe_open

    total = 0
    for file in sorted(run.glob("*.safetensors")):
        with safe_open(file, "np") as held:
            for name in held.keys():  # noqa: SIM118 - not a dict
                size = 1
                for side in held.get_slice(name).get_shape():
                    size *= side
                total += size
    return total


def _cells(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.jsonl"
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    records = [json.loads(line) for line in whole]
    seconds: dict[tuple[str, int], float] = {}
    for record in records:
        key = (record["task"], record["length"])
        seconds[key] = seconds.get(key, 0.0) + record["seconds"]
    cells = summarise(records)
    return [{**cell, "seconds": round(seconds[cell["task"], cell["length"]], 1)} for cell in cells]


def _place(row: str) -> tuple[int, str]:
    model = row.removesuffix(SECOND_STAGE)
    return (ORDER.index(model) if model in ORDER else len(ORDER), row)


Figures = dict[str, dict[int, list[tuple[float, int]]]]


def figures(results: Sequence[dict[str, Any]]) -> dict[str, Figures]:
    """task -> row -> length -> (accuracy, samples) of every seed; the average of qa1 to qa5 as a task of its own."""
    found: dict[str, Figures] = {}
    for result in results:
        for name, suffix in (("cells", ""), ("cells_memory_off", MEMORY_OFF)):
            cells = {(c["task"], c["length"]): c for c in result[name]}
            five = [f"babilong_qa{n}" for n in range(1, 6)]
            for length in {length for _, length in cells}:
                parts = [cells.get((task, length)) for task in five]
                if all(parts):
                    mean = sum(_first(part) for part in parts if part) / 5
                    samples = sum(part["samples"] for part in parts if part)
                    cells["average qa1-qa5", length] = {"scores": {"mean": mean}, "samples": samples}
            for (task, length), cell in cells.items():
                row = found.setdefault(task, {}).setdefault(result["row"] + suffix, {})
                row.setdefault(length, []).append((_first(cell), cell["samples"]))
    return found


def _first(cell: dict[str, Any]) -> float:
    return next(iter(cell["scores"].values()))


def markdown(task: str, results: Sequence[dict[str, Any]]) -> str:
    """Accuracies in percent, the mean over seeds and in brackets the range, and what each row cost."""
    parts = []
    for name, rows in sorted(figures(results).items()):
        lengths = sorted({length for row in rows.values() for length in row})
        lines = [f"**{name}**, % right (range over seeds)", ""]
        lines.append("| model | " + " | ".join(length_label(n, KILO[task]) for n in lengths) + " |")
        lines.append("|---" * (1 + len(lengths)) + "|")
        for row in rows:
            lines.append(f"| {row} | " + " | ".join(_spread(rows[row].get(n, [])) for n in lengths) + " |")
        sizes = {n: sorted({s for row in rows.values() for _, s in row.get(n, [])}) for n in lengths}
        told = ", ".join(f"{length_label(n, KILO[task])}: {_range(sizes[n])}" for n in lengths)
        parts.append("\n".join([*lines, "", f"Samples a seed: {told}."]))
    head = ["| model | seeds | parameters | tokens trained | final loss | training, s |", "|---|---|---|---|---|---|"]
    for row in dict.fromkeys(result["row"] for result in results):
        group = [result for result in results if result["row"] == row]
        losses = ", ".join(f"{r['training']['final_loss']:.3f}" for r in group)
        tokens = _range(sorted({_total(r, "tokens") for r in group}))
        seconds = ", ".join(f"{_total(r, 'seconds'):,.0f}" for r in group)
        seeds = ", ".join(str(r["seed"]) for r in group)
        head.append(f"| {row} | {seeds} | {group[0]['parameters']:,} | {tokens} | {losses} | {seconds} |")
    return "\n\n".join([*parts, "\n".join(head)]) + "\n"


def _total(result: dict[str, Any], name: str) -> Any:
    """Of the run and the lessons before it."""
    return sum(run[name] for run in (*result.get("lessons", ()), result["training"]))


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _spread(cells: Sequence[tuple[float, int]]) -> str:
    if not cells:
        return ""
    shares = [100 * share for share, _ in cells]
    mean = sum(shares) / len(shares)
    return f"{mean:.1f}" + (f" ({min(shares):.0f}-{max(shares):.0f})" if len(shares) > 1 else "")


def draw(path: Path, task: str, results: Sequence[dict[str, Any]], title: str) -> Path | None:
    """Accuracy over length, a panel a task, a line a row with a band over its seeds."""
    panels = []
    found = figures(results)
    asked = {length for rows in found.values() for lengths in rows.values() for length in lengths}
    # facts alone have no place on a logarithmic axis: they stand two octaves before the shortest context
    alone = min(asked - {0}, default=1 << 12) / 4
    for name, rows in sorted(found.items()):
        curves = {}
        for row, lengths in rows.items():
            if row.endswith(MEMORY_OFF):
                continue  # in the table; as lines at the bottom they would hide the others
            points = []
            for length, cells in lengths.items():
                shares = [100 * share for share, _ in cells]
                points.append((length or alone, sum(shares) / len(shares), min(shares), max(shares)))
            curves[row] = points
        panel = {"title": name, "x": "context, tokens", "y": "% right", "y_range": (-3, 103), "curves": curves}
        panels.append({**panel, "ticks": {alone: length_label(0, KILO[task])}})
    return picture(path, panels, title) if panels else None
