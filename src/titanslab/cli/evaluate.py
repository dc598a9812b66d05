"""`titans evaluate`: perplexity on a text; `titans evaluate TASK` runs a task of the table."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.evaluate_task import task_command
from titanslab.cli.options import Device
from titanslab.tasks.table import TASKS


class TaskGroup(typer.core.TyperGroup):
    """A command group with one verb for each task of the table that has cells."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [task.name for task in TASKS.values() if task.cells is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return task_command(TASKS[cmd_name]) if cmd_name in self.list_commands(ctx) else None


evaluate = typer.Typer(cls=TaskGroup, add_completion=False, invoke_without_command=True, rich_markup_mode="rich")


@evaluate.callback()
def perplexity(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A run folder or a saved model.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Text, JSONL, parquet, a folder, or a dataset on the hub; repeatable."),
    ] = None,
    context_length: Annotated[
        list[int] | None,
        typer.Option("--context-length", "-c", min=1, help="Tokens of a window; repeatable. Default 1024."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest number of tokens to score.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 8,
    text_column: Annotated[str, typer.Option(help="The column of JSONL, parquet or hub data.")] = "text",
    split: Annotated[str, typer.Option(help="The split of a hub dataset.")] = "test",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for JSON and PNG; default: MODEL/evaluation."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure how well a model predicts text: perplexity, bits per byte, and loss by position in the context.

    Example: [bold]titans evaluate --model runs/tiny --data book.txt -c 512 -c 4096[/bold]

    Any causal language model saved by Hugging Face can be measured. The loss by position, in the JSON and
    the PNG, shows whether the loss of later tokens is lower.
    """
    if context.invoked_subcommand is not None:
        return
    if model is None or not data:
        raise ValueError("titans evaluate needs --model RUN and --data PATH (see titans evaluate --help)")
    from titanslab.data import open_corpus
    from titanslab.runs.loading import find_model_folder, open_model

    find_model_folder(model)
    corpus = open_corpus(data[0] if len(data) == 1 else data, "--data", column=text_column, split=split, streaming=True)
    folder = output or Path(model) / "evaluation"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file; give a folder")
    opened = open_model(model, device)
    from rich.console import Console

    from titanslab.evaluation.perplexity import evaluate_perplexity
    from titanslab.evaluation.pictures import plot_positions
    from titanslab.evaluation.table import perplexity_table
    from titanslab.files import write_whole
    from titanslab.progress import bar
    from titanslab.runs.versions import versions

    results = []
    sizes = {"batch_size": batch_size, "max_tokens": max_tokens}
    for length in sorted(set(context_length or [1024])):
        with bar(f"context {length:,}", "tokens") as show:
            results.append(
                evaluate_perplexity(
                    opened.model, opened.tokenizer, iter(corpus), context_length=length, progress=show, **sizes
                )
            )
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9-]+", "-", Path(data[0]).name.split(".")[0]).strip("-") or "data"
    name = f"perplexity-{stem}" + (f"-and-{len(data) - 1}-more" if len(data) > 1 else "")
    numbers, picture = folder / f"{name}.json", folder / f"{name}.png"
    measured = [asdict(result) for result in results]
    content = {"model": model, "data": data, "results": measured, "versions": versions()}
    write_whole(numbers, json.dumps(content, indent=1) + "\n")
    plot_positions(results, picture, f"{model} on {Path(data[0]).name}")
    console = Console()
    console.print(perplexity_table(results))
    console.print(f"{numbers}\n{picture}", highlight=False, soft_wrap=True)
