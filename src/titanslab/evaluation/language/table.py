"""The paper's table of language modelling and common sense: on the screen, in Markdown and in JSON."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from msgspec import to_builtins

from titanslab.evaluation.language.run import Scored
from titanslab.evaluation.language.tasks import TASKS, Column

AVERAGE = "Avg"


class Value(NamedTuple):
    """A value of the table and its standard error; accuracies in percent. None where there is none."""

    column: Column
    value: float | None
    error: float | None


def values(results: Iterable[Scored]) -> list[Value]:
    """The values of all columns in the paper's order; those of tasks without a result are None."""
    by_task = {scored.task: scored for scored in results}
    found = []
    for task in TASKS.values():
        for column in task.columns:
            scored, scale = by_task.get(task.name), 100.0 if column.kind == "accuracy" else 1.0
            value = scored.scores[column.metric] * scale if scored else None
            error = scored.errors.get(column.metric) if scored else None
            found.append(Value(column, value, None if error is None else error * scale))
    return found


def average(row: Sequence[Value]) -> float | None:
    """The mean of the accuracy columns; None unless all of them have a value."""
    accuracies = [value.value for value in row if value.column.kind == "accuracy"]
    present = [value for value in accuracies if value is not None]
    return sum(present) / len(present) if len(present) == len(accuracies) else None


def cells(row: Sequence[Value]) -> Iterator[tuple[str, str]]:
    """Heading and text of each column with a value, and of the average."""
    for column, value, error in row:
        if value is not None:
            yield column.title, _number(value) + ("" if error is None else f" ± {_number(error)}")
    if (mean := average(row)) is not None:
        yield AVERAGE, f"{mean:.2f}"


def _number(value: float) -> str:
    """Two decimals, or three digits for the perplexity of a model that knows nothing of the text."""
    return f"{value:,.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def screen_table(model: str, results: Sequence[Scored]) -> Any:
    """A rich table with a line per column of the paper's table, which has more columns than a terminal has room for."""
    from rich.table import Table

    table = Table("column", "task")
    for heading in ("value", "± error", "samples"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.title = model
    by_task = {scored.task: scored for scored in results}
    names = {column.title: task.name for task in TASKS.values() for column in task.columns}
    row = values(results)
    for column, value, error in row:
        if value is not None:
            name = names[column.title]
            shown = "" if error is None else _number(error)
            table.add_row(column.title, name, _number(value), shown, f"{by_task[name].samples:,}")
    if (mean := average(row)) is not None:
        table.add_row(AVERAGE, "", f"{mean:.2f}", "", "", style="bold")
    return table


def markdown(model: str, results: Sequence[Scored], note: str) -> str:
    """The row of a model in the paper's columns with standard errors, the numbers of samples, and a note."""
    counts = {column.title: f"{s.samples:,}" for s in results for column in TASKS[s.task].columns}
    headings, texts = zip(*cells(values(results)), strict=True)
    lines = [["model", *headings], ["---", *("---:" for _ in headings)], [model, *texts]]
    lines.append(["samples", *(counts.get(heading, "") for heading in headings)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}\n"


def summary(model: str, results: Sequence[Scored], facts: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json: the table's values, each task's own values, and facts about the run."""
    row = values(results)
    return {
        "model": model,
        "table": {
            value.column.title: {"value": value.value, "standard_error": value.error}
            for value in row
            if value.value is not None
        },
        "average": average(row),
        "tasks": to_builtins(list(results)),
        **facts,
    }
