"""The tables and pictures of a study of running text: perplexity, loss by position, common sense, speed and rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from titanslab.experiments.sections import PERPLEXITY, SHOWN
from titanslab.experiments.table import figures
from titanslab.tasks.sample import length_label

if TYPE_CHECKING:
    from titanslab.experiments.sections import PaperTable
    from titanslab.experiments.study import Study

Results = Sequence[dict[str, Any]]
Columns = dict[str, dict[str, list[float]]]  # column -> row -> the value of each seed
SHORTEST = 64  # positions up to this one are one column
MARK = " (paper)"
# headings of the values of [score]
SCORES = {
    "": "Scores",
    "mse": "Mean squared error, test",
    "mae": "Mean absolute error, test",
    "accuracy": "Accuracy, test",
}


def tables(study: Study, results: Results, speeds: Results) -> list[str]:
    """The Markdown tables of everything that was measured; columns of the paper's figures are marked."""
    paper, shown = study.paper.tables, shown_value(study)
    parts = [
        _table(SHOWN[shown][0], perplexities(study, results), paper.get(PERPLEXITY), SHOWN[shown][1]),
        _table(_positions_title(results), positions(results), None, ".3f"),
        _table("Common sense", language(results), paper.get("language"), ".2f"),
        *(
            _table(SCORES.get(name, name), columns, paper.get(name), ".3f")
            for name, columns in scores(study, results).items()
        ),
        _table("Training, tokens a second", speed(study, speeds), paper.get("speed"), ",.0f"),
        _rates(results),
    ]
    parts = [part for part in parts if part]
    if any(MARK in part for part in parts):
        parts.append(f"Columns marked{MARK}: {study.paper.source}.")
    return parts


def panels(study: Study, results: Results, speeds: Results) -> list[dict[str, Any]]:
    """The panels of the study's picture, as `titanslab.experiments.report.picture` takes them."""
    found = []
    columns = perplexities(study, results, tasks=False)
    across = {length: name for name in columns if (length := _column_length(study, name)) is not None}
    heading, y = SHOWN[shown_value(study)][0].lower(), shown_value(study).replace("_", " ")
    if len(across) > 1:
        found.append(_over_length(heading, "tokens of a row", columns, across) | {"y": y})
    elif columns:
        first = next(iter(columns))
        bars = {row: [(1.0, *_spread(values))] for row, values in columns[first].items()}
        found.append({"title": f"{heading}, {first}", "x": "", "y": y, "curves": bars})
    curves = _position_curves(results)
    if curves:
        found.append(
            {"title": _positions_title(results), "x": "tokens of context", "y": "nats a token", "curves": curves}
        )
    timed = speed(study, speeds)
    at = {length: name for name in timed if (length := _column_length(study, name)) is not None}
    if timed:
        found.append(_over_length("training", "tokens of a row", timed, at) | {"y": "tokens a second"})
    swept = _sweep_curves(results)
    if swept:
        found.append({"title": "sweep of learning rates", "x": "learning rate", "y": "nats a token", "curves": swept})
    return [panel | {"y_range": _ends(panel["curves"])} for panel in found]


def _ends(curves: dict[str, list[tuple[float, float, float, float]]]) -> tuple[float, float]:
    """The ends of a linear axis that holds all points."""
    low = min(point[2] for points in curves.values() for point in points)
    high = max(point[3] for points in curves.values() for point in points)
    room = 0.05 * ((high - low) or abs(high) or 1.0)
    return low - room, high + room


def perplexities(study: Study, results: Results, tasks: bool = True) -> Columns:
    """The value of `perplexity.show` at each length, and with `tasks` the mean accuracy of a set that answers."""
    found: Columns = {}
    value = shown_value(study)
    several = len({r["set"] for r in results if r["perplexity"]}) > 1
    for result in results:
        measured = result["perplexity"].get("results", ())
        for one in measured:
            label = length_label(one["context_length"], 1024)
            name = label if not several else result["set"] if len(measured) == 1 else f"{result['set']}, {label}"
            found.setdefault(name, {}).setdefault(result["model"], []).append(one[value])
    if not found or not tasks:
        return found
    for name, part in study.sets.items():
        answered = [r for r in results if r["set"] == name and r["cells"]]
        ask = part.measures["ask"]
        for result in answered:
            shares = [cell for row in figures([result], ask).values() for cell in row.get(result["row"], {}).values()]
            means = [100 * share for cells in shares for share, _ in cells]
            column = found.setdefault(f"{ask.task}, mean %", {})
            column.setdefault(result["model"], []).append(sum(means) / len(means))
    return found


def shown_value(study: Study) -> str:
    """`perplexity.show` of the first set."""
    return next(iter(study.sets.values())).measures[PERPLEXITY].show


def positions(results: Results) -> Columns:
    """Loss in nats by tokens of context before the predicted one, at the longest length of each row."""
    found: Columns = {}
    for result in results:
        longest = _longest(result)
        if longest is None:
            continue
        near = [bucket for bucket in longest["positions"] if bucket["last"] <= SHORTEST]
        spans = [(f"1-{SHORTEST}", near), *((_span(b), [b]) for b in longest["positions"] if b["last"] > SHORTEST)]
        for name, buckets in spans:
            if tokens := sum(bucket["tokens"] for bucket in buckets):
                loss = sum(bucket["loss"] * bucket["tokens"] for bucket in buckets) / tokens
                found.setdefault(name, {}).setdefault(result["row"], []).append(loss)
    return found


def scores(study: Study, results: Results) -> dict[str, Columns]:
    """For each value of [score] its columns: the sets of a group in one, with the mean of these sets for each seed.

    A row has a seed in a group only where all sets of the group have it. With one group, the values are the columns of
    one table.
    """
    found: dict[str, Columns] = {}
    groups: dict[str, list[str]] = {}
    for name, part in study.sets.items():
        groups.setdefault(part.group or name, []).append(name)
    values = {(r["set"], r["model"], r["seed"]): r["score"] for r in results if r.get("score")}
    models = dict.fromkeys((model, seed) for _, model, seed in values)
    for group, sets in groups.items():
        for model, seed in models:
            cells = [values.get((name, model, seed)) for name in sets]
            if all(cells):
                for value in study.sets[sets[0]].measures["score"].values:
                    known = [cell[value] for cell in cells if cell and cell[value] is not None]
                    if len(known) == len(cells):
                        mean = sum(known) / len(known)
                        found.setdefault(value, {}).setdefault(group, {}).setdefault(model, []).append(mean)
    if len(groups) == 1 and len(found) > 1:
        return {"": {value: next(iter(columns.values())) for value, columns in found.items()}}
    return found


def language(results: Results) -> Columns:
    """The values of `titans evaluate language` by the names of its columns."""
    found: Columns = {}
    for result in results:
        for name, cell in result["language"].get("results", {}).items():
            value = cell["value"] if isinstance(cell, dict) else cell
            found.setdefault(name, {}).setdefault(result["model"], []).append(value)
    return found


def speed(study: Study, speeds: Results) -> Columns:
    """Tokens a second of a training step by length, or by set where each set has a length of its own."""
    found: Columns = {}
    several = len({s["set"] for s in speeds}) > 1
    for timed in speeds:
        for one in timed["results"]:
            name = timed["set"] if several else length_label(one["length"], 1024)
            if "tokens_per_second" in one:
                found.setdefault(name, {}).setdefault(timed["model"], []).append(one["tokens_per_second"])
    return found


def _column_length(study: Study, name: str) -> int | None:
    """The tokens of a column's name, such as 2k; None for another name."""
    from titanslab.tasks.sample import parse_length

    try:
        return parse_length(name, 1024, "length")
    except ValueError:
        return None


def _over_length(title: str, x: str, columns: Columns, lengths: dict[int, str]) -> dict[str, Any]:
    rows = dict.fromkeys(row for name in lengths.values() for row in columns[name])
    curves = {
        row: [(n, *_spread(columns[name][row])) for n, name in sorted(lengths.items()) if row in columns[name]]
        for row in rows
    }
    return {"title": title, "x": x, "curves": curves}


def _position_curves(results: Results) -> dict[str, list[tuple[float, float, float, float]]]:
    """Row -> points of loss over position, the mean of the seeds."""
    found: dict[str, dict[float, list[float]]] = {}
    for result in results:
        longest = _longest(result)
        for bucket in longest["positions"] if longest else ():
            at = math.sqrt(bucket["first"] * bucket["last"])
            found.setdefault(result["row"], {}).setdefault(at, []).append(bucket["loss"])
    return {row: [(at, *_spread(values)) for at, values in points.items()] for row, points in found.items()}


def _sweep_curves(results: Results) -> dict[str, list[tuple[float, float, float, float]]]:
    found = {}
    for result in results:
        runs = [run for run in result["sweep"].get("runs", ()) if run["loss"] is not None]
        if runs and result["row"] not in found:
            found[result["row"]] = [(run["rate"], run["loss"], run["loss"], run["loss"]) for run in runs]
    return found


def _rates(results: Results) -> str:
    """The losses of the sweep on held-out text, and the chosen rate of each seed."""
    rates = sorted({run["rate"] for result in results for run in result["sweep"].get("runs", ())})
    if not rates:
        return ""
    lines = ["**Sweep of learning rates**, loss on held-out text after the short runs", ""]
    lines.append("| model | " + " | ".join(f"{rate:g}" for rate in rates) + " | steps | chosen |")
    lines.append("|---" * (3 + len(rates)) + "|")
    for row in dict.fromkeys(result["row"] for result in results if result["sweep"]):
        swept = [result["sweep"] for result in results if result["row"] == row and result["sweep"]]
        cells = []
        for rate in rates:
            losses = [run["loss"] for sweep in swept for run in sweep["runs"] if run["rate"] == rate]
            cells.append(", ".join("diverged" if loss is None else f"{loss:.3f}" for loss in losses))
        steps = ", ".join(str(n) for n in sorted({run["steps"] for sweep in swept for run in sweep["runs"]}))
        chosen = ", ".join(f"{sweep['chosen']:g}" for sweep in swept if sweep["chosen"] is not None)
        lines.append(f"| {row} | {' | '.join(cells)} | {steps} | {chosen} |")
    return "\n".join(lines)


def _table(title: str, columns: Columns, paper: PaperTable | None, form: str) -> str:
    """A table with a row per model; the columns of the paper stand behind ours. Empty without a value of ours."""
    if not columns:
        return ""
    rows = dict.fromkeys(row for values in columns.values() for row in values)
    published = paper.columns if paper is not None else []
    lines = [f"**{title}** (range over seeds)" if _several(columns) else f"**{title}**", ""]
    lines.append(f"| {' | '.join(['model', *columns, *(name + MARK for name in published)])} |")
    lines.append("|---" * (1 + len(columns) + len(published)) + "|")
    for row in rows:
        ours = [_shown(values.get(row, []), form) for values in columns.values()]
        theirs = [f"{value:g}" for value in paper.rows.get(row, [])] if paper is not None else []
        theirs += [""] * (len(published) - len(theirs))
        lines.append(f"| {' | '.join([row, *ours, *theirs])} |")
    return "\n".join(lines)


def _several(columns: Columns) -> bool:
    return any(len(values) > 1 for column in columns.values() for values in column.values())


def _shown(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean, low, high = _spread(values)
    return format(mean, form) + (f" ({low:{form}}-{high:{form}})" if len(values) > 1 else "")


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, least and largest."""
    return sum(values) / len(values), min(values), max(values)


def _longest(result: dict[str, Any]) -> dict[str, Any] | None:
    measured = result["perplexity"].get("results", ())
    return max(measured, key=lambda one: one["context_length"], default=None)


def _positions_title(results: Results) -> str:
    lengths = sorted({longest["context_length"] for result in results if (longest := _longest(result))})
    shown = ", ".join(length_label(n, 1024) for n in lengths)
    return f"Loss by tokens of context, windows of {shown} tokens"


def _span(bucket: dict[str, Any]) -> str:
    return (
        f"{length_label(bucket['first'] - 1, 1024) if bucket['first'] > 1 else 1}-{length_label(bucket['last'], 1024)}"
    )
