"""Result tables: scores by sub-task and length, and perplexity by context length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from titanslab.tasks.sample import length_label
from titanslab.tasks.table import Task

if TYPE_CHECKING:
    from titanslab.evaluation.perplexity import PerplexityResult

SHOWN = tuple(4**n for n in range(11))  # tokens of context of the table of perplexity


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number of samples, mean of each score and standard error of the first score, per sub-task and length.

    Returns:
        `{task, length, samples, scores: {name: mean}, standard_error}`, sorted by task and length.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["task"], record["length"]), []).append(record)
    rows = []
    for (task, length), members in sorted(groups.items(), key=lambda item: (task_order(item[0][0]), item[0][1])):
        means = {name: sum(m["scores"][name] for m in members) / len(members) for name in members[0]["scores"]}
        first = next(iter(means.values()))
        rows.append(
            {
                "task": task,
                "length": length,
                "samples": len(members),
                "scores": means,
                "standard_error": math.sqrt(max(0.0, first * (1 - first)) / len(members)),
            }
        )
    return rows


def tables(summary: Sequence[dict[str, Any]], task: Task, score: str, title: str, width: int) -> list[Any]:
    """Rich tables of percentages, sub-tasks in rows and lengths in columns, of at most `width` characters each.

    Args:
        summary: from `summarise`.
        task: gives the unit of lengths and the sub-tasks to average; the average has a row where all of these exist.
        score, title: name of the score; heading of each table.
        width: of the screen; a column of each table has 8 characters ("100.0", its padding and a line).
    """
    from rich.table import Column, Table

    values = {(row["task"], row["length"]): 100 * row["scores"][score] for row in summary}
    averaged = [f"{task.name}_{part}" for part in task.average]
    label = f"average {task.average[0]}-{task.average[-1]}" if averaged else ""
    lengths, found = sorted({length for _, length in values}), []
    at_once = max(1, (width - max(len(name) for name in (label, *(name for name, _ in values))) - 4) // 8)
    for shown in (lengths[i : i + at_once] for i in range(0, len(lengths), at_once)):
        found.append(Table(Column("%", no_wrap=True), title=title))
        for length in shown:
            found[-1].add_column(length_label(length, task.kilo), justify="right", no_wrap=True)
        names = sorted({name for name, length in values if length in shown}, key=task_order)
        for name in names:
            found[-1].add_row(name, *(f"{values[name, n]:.1f}" if (name, n) in values else "" for n in shown))
        if averaged and set(averaged) <= set(names):
            sums = [sum(values.get((name, length), math.nan) for name in averaged) for length in shown]
            means = ["" if math.isnan(total) else f"{total / len(averaged):.1f}" for total in sums]
            found[-1].add_row(label, *means, style="bold")
    return found


def perplexity_table(results: Sequence[PerplexityResult], models: Sequence[str] = ()) -> Any:
    """A rich table with a row per measurement; its last column has the loss by position, in bits per token.

    Args:
        results: measurements. models: the model of each; empty = no column of models.
    """
    from rich.table import Table

    headings = ("context", "tokens", "perplexity", "bits/byte", "bits/token by tokens of context")
    result = Table(*(["model"] if models else []), *headings)
    for one, name in zip_longest(results, models):
        shown = [b for b in one.positions if b.last in SHOWN or b is one.positions[-1]]
        by_position = "  ".join(f"{b.last}: {b.loss / math.log(2):.2f}" for b in shown)
        numbers = (f"{one.context_length:,}", f"{one.tokens:,}", f"{one.perplexity:.3f}", f"{one.bits_per_byte:.4f}")
        result.add_row(*([name] if models else []), *numbers, by_position)
    return result


def task_order(name: str) -> tuple[str, int]:
    """Sorting key of a sub-task's name, in which a number at its end counts as a number."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)
