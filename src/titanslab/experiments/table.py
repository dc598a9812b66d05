"""Collects the results in a work folder, and writes them as a markdown table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titanslab.documents import read_json
from titanslab.evaluation.results import read_records
from titanslab.evaluation.table import summarise
from titanslab.experiments import asking, common_sense, scored, speed, text_loss, tuning
from titanslab.experiments.report import picture
from titanslab.experiments.sections import Ask, Paper
from titanslab.experiments.study import MAIN, Study
from titanslab.tasks.sample import length_label
from titanslab.training.picture import metric_lines

MEMORY_OFF = ", memory off"
PAPER = ", the paper"
Figures = dict[str, dict[str, dict[int, list[tuple[float, int]]]]]


def collect(study: Study, work: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """All rows and seeds in a work folder, in the order of the study.

    Returns:
        results: one entry per row, seed and stage whose model has answered; without any answers, one for the last
            finished stage. Its keys are row, set, model (the row without its set and stage), seed, parameters,
            training, lessons (the training of earlier stages), cells, cells_memory_off, and the contents of
            sweep.json, perplexity.json, language.json and score.json.
        missing: name and reason of each row and seed without a finished stage.
    """
    results, missing = [], []
    for set_name, part in study.sets.items():
        for row in part.rows:
            for folder in sorted((work / set_name).glob(f"{row}-seed*"), key=_seed):
                stages = part.all_stages_of(row)
                done = [stage for stage in stages if (folder / stage / "result.json").exists()]
                if not done and (folder / speed.RESULT).exists():
                    continue  # a row that is timed alone
                if not done:
                    reason = f"training is not finished; see {folder / 'log.txt'}"
                    missing.append((f"{set_name}/{folder.name}", reason))
                    continue
                usual = part.stages_of(row)[-1]
                asked = [stage for stage in done if (folder / f"evaluation-{stage}").exists()]
                for stage in asked or done[-1:]:
                    label = ", ".join([row, *([] if set_name == MAIN else [set_name]), *([stage] * (stage != usual))])
                    before = stages[: stages.index(stage)]
                    results.append(
                        {
                            "row": label,
                            "set": set_name,
                            "model": row,
                            "seed": _seed(folder),
                            "parameters": count_parameters(folder / stage),
                            "training": training(folder / stage),
                            "lessons": [training(folder / earlier) for earlier in before if earlier in done],
                            "cells": _cells(folder / f"evaluation-{stage}"),
                            "cells_memory_off": _cells(folder / f"evaluation-{stage}-frozen"),
                            "sweep": tuning.read(folder),
                            "perplexity": text_loss.read(folder),
                            "language": common_sense.read(folder),
                            "score": scored.read(folder).get("results", {}),
                        }
                    )
    return results, missing


def collect_speed(study: Study, work: Path) -> list[dict[str, Any]]:
    """The contents of speed.json of all rows, in the order of the study, with set, model and seed."""
    found = []
    for set_name, part in study.sets.items():
        for row in part.rows:
            for folder in sorted((work / set_name).glob(f"{row}-seed*"), key=_seed):
                if content := speed.read(folder):
                    found.append({"set": set_name, "model": row, "seed": _seed(folder), **content})
    return found


def _seed(folder: Path) -> int:
    return int(folder.name.rpartition("-seed")[2])


def training(run: Path) -> dict[str, Any]:
    """Steps, tokens, seconds (over all sessions), losses, recipe and versions of a run."""
    lines = metric_lines(run / "metrics.jsonl")
    logged = [line for line in lines if "loss" in line]
    seconds, before = 0.0, 0
    for line in logged:
        if line.get("tokens_per_second"):
            seconds += (line["tokens"] - before) / line["tokens_per_second"]
        before = line["tokens"]
    result = read_json(run / "result.json", dict[str, Any], fix="train this stage again")
    return {
        "steps": result["steps"],
        "tokens": result["tokens"],
        "seconds": round(seconds, 1),
        "final_loss": result["loss"],
        "losses": [[line["step"], round(line["loss"], 4)] for line in logged],
        "recipe": (run / "recipe.toml").read_text(),
        "versions": read_json(run / "versions.json", dict[str, Any]),
    }


def count_parameters(run: Path) -> int:
    """Number of parameters of a saved model, from the headers of its files; tied parameters count once.

    The weights that training keeps for its best validation are not counted: they are the model's once more.
    """
    from safetensors import safe_open

    from titanslab.training.best import WEIGHTS as BEST_WEIGHTS

    total = 0
    for file in sorted(path for path in run.glob("*.safetensors") if path.name != BEST_WEIGHTS):
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
    records = read_records(folder)
    seconds: dict[tuple[str, int], float] = {}
    for record in records:
        key = (record["task"], record["length"])
        seconds[key] = seconds.get(key, 0.0) + record["seconds"]
    cells = summarise(records)
    return [{**cell, "seconds": round(seconds[cell["task"], cell["length"]], 1)} for cell in cells]


def figures(results: Sequence[dict[str, Any]], ask: Ask) -> Figures:
    """task -> row -> length -> [(accuracy, samples) of each seed]. The average of the tasks is a further task."""
    found: Figures = {}
    label, average = asking.average_of(ask)
    for result in results:
        for name, suffix in (("cells", ""), ("cells_memory_off", MEMORY_OFF)):
            cells = {(c["task"], c["length"]): (_first(c), c["samples"]) for c in result[name]}
            for length in {length for _, length in cells}:
                parts = [cells[task, length] for task in average if (task, length) in cells]
                if parts and len(parts) == len(average):
                    mean = sum(share for share, _ in parts) / len(parts)
                    cells[f"average {label}", length] = mean, sum(samples for _, samples in parts)
            for (task, length), cell in cells.items():
                row = found.setdefault(task, {}).setdefault(result["row"] + suffix, {})
                row.setdefault(length, []).append(cell)
    return found


def _first(cell: dict[str, Any]) -> float:
    return next(iter(cell["scores"].values()))


def markdown(results: Sequence[dict[str, Any]], ask: Ask, paper: Paper) -> str:
    """Tables of accuracy in percent, mean over seeds with the range in parentheses, and of each row's training cost."""
    return "\n\n".join([*accuracies(results, ask, paper), costs(results)]) + "\n"


def accuracies(results: Sequence[dict[str, Any]], ask: Ask, paper: Paper) -> list[str]:
    """A table of accuracy in percent for each task, with the paper's figures below ours."""
    parts = []
    kilo = asking.task_of(ask).kilo if ask.task else 1024
    for name, rows in sorted(figures(results, ask).items()):
        lengths = sorted({length for row in rows.values() for length in row})
        lines = [f"**{name}**, % right (range over seeds)", ""]
        lines.append("| model | " + " | ".join(length_label(n, kilo) for n in lengths) + " |")
        lines.append("|---" * (1 + len(lengths)) + "|")
        published = _published(name, ask, paper)
        for row in rows:
            lines.append(f"| {row} | " + " | ".join(_spread(rows[row].get(n, [])) for n in lengths) + " |")
            model = row.split(", ")[0]
            found = published.pop(model, {})  # shown once, below the first row of the model
            if found.keys() & set(lengths):
                shown = [f"{found[n]:.1f}" if n in found else "" for n in lengths]
                lines.append(f"| {model}{PAPER} | " + " | ".join(shown) + " |")
        sizes = {n: sorted({s for row in rows.values() for _, s in row.get(n, [])}) for n in lengths}
        samples = ", ".join(f"{length_label(n, kilo)}: {_range(sizes[n])}" for n in lengths)
        parts.append("\n".join([*lines, "", f"Samples a seed: {samples}."]))
    if any(PAPER in part for part in parts):
        parts.append(f"The paper: {paper.source}.")
    return parts


def costs(results: Sequence[dict[str, Any]]) -> str:
    """A table of parameters, tokens, loss and seconds of each row's training."""
    head = ["| model | seeds | parameters | tokens trained | final loss | training, s |", "|---|---|---|---|---|---|"]
    for row in dict.fromkeys(result["row"] for result in results):
        group = [result for result in results if result["row"] == row]
        losses = ", ".join(f"{r['training']['final_loss']:.3f}" for r in group)
        tokens = _range(sorted({_total(r, "tokens") for r in group}))
        seconds = ", ".join(f"{_total(r, 'seconds'):,.0f}" for r in group)
        seeds = ", ".join(str(r["seed"]) for r in group)
        head.append(f"| {row} | {seeds} | {group[0]['parameters']:,} | {tokens} | {losses} | {seconds} |")
    return "\n".join(head)


def _published(name: str, ask: Ask, paper: Paper) -> dict[str, dict[int, float]]:
    """The paper's figures for one task of the table: row -> length -> percent."""
    lengths = asking.lengths_of(ask, paper.lengths) if ask.task else []
    return {
        row: dict(zip(lengths, values, strict=True))
        for row, tasks in paper.rows.items()
        for task, values in tasks.items()
        if name in (f"{ask.task}_{task}", f"average {task}")
    }


def _total(result: dict[str, Any], name: str) -> Any:
    """Sum of a figure over a run and its earlier stages."""
    return sum(run[name] for run in (*result.get("lessons", ()), result["training"]))


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _spread(cells: Sequence[tuple[float, int]]) -> str:
    if not cells:
        return ""
    shares = [100 * share for share, _ in cells]
    mean = sum(shares) / len(shares)
    return f"{mean:.1f}" + (f" ({min(shares):.0f}-{max(shares):.0f})" if len(shares) > 1 else "")


def draw(path: Path, results: Sequence[dict[str, Any]], ask: Ask, title: str) -> Path | None:
    """Draw accuracy over length: one panel per task, one line per row, with a band for the range over seeds."""
    panels = accuracy_panels(results, ask)
    return picture(path, panels, title) if panels else None


def accuracy_panels(results: Sequence[dict[str, Any]], ask: Ask) -> list[dict[str, Any]]:
    """The panels of `draw`, as `picture` takes them."""
    panels = []
    found = figures(results, ask)
    asked = {length for rows in found.values() for lengths in rows.values() for length in lengths}
    # A logarithmic axis has no 0, so length 0 (facts alone) is drawn at a quarter of the shortest length.
    alone = min(asked - {0}, default=1 << 12) / 4
    for name, rows in sorted(found.items()):
        curves = {}
        for row, lengths in rows.items():
            if row.endswith(MEMORY_OFF):
                continue  # the table has these rows; in the picture their lines at the bottom would hide the others
            points = []
            for length, cells in lengths.items():
                shares = [100 * share for share, _ in cells]
                points.append((length or alone, sum(shares) / len(shares), min(shares), max(shares)))
            curves[row] = points
        panel = {"title": name, "x": "context, tokens", "y": "% right", "y_range": (-3, 103), "curves": curves}
        panels.append({**panel, "ticks": {alone: length_label(0, asking.task_of(ask).kilo)}})
    return panels
