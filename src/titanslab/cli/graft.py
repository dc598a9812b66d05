"""`titans graft`: train a memory for a pretrained model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titanslab.cli.suggestions import reading_commands

if TYPE_CHECKING:
    from titanslab.training.recipe import Recipe

STEPS = 1000


def graft(
    base: Annotated[str, typer.Argument(help="The base: a folder of a causal language model, or its name on the hub.")],
    train: Annotated[
        list[str],
        typer.Option(
            "--train",
            "-t",
            help="Long documents: text, JSONL, parquet, a folder, or a dataset on the hub; repeatable.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the graft.", show_default=False)],
    validation: Annotated[
        list[str] | None, typer.Option("--validation", "-v", help="Documents for the controls at the end; repeatable.")
    ] = None,
    window: Annotated[int, typer.Option(min=0, help="Tokens that the base's attention sees; 0: all.")] = 512,
    lora: Annotated[int, typer.Option(min=0, help="Rank of LoRA in the base; 0: the memories alone are trained.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = STEPS,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as graft.layers=all."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Give a pretrained language model a memory, and train it on long documents.

    Example: [bold]titans graft HuggingFaceTB/SmolLM2-135M --train books/ --output my-memory --lora 16[/bold]

    The documents are read in order, and the memory goes on from piece to piece. The folder holds the memory without
    the base's weights, and its recipe, of which --set changes any key. At the end stands the loss by distance with the
    memory on, off, of another document, window alone, and full context.
    """
    from titanslab.training.recipe import parse_recipe

    table: dict[str, dict[str, Any]] = {
        "graft": {"base": base, "window_size": window or "all", "lora": lora},
        "data": {"train": _one_or_all(train), "validation": _one_or_all(validation or [])},
        "training": {"steps": steps, "batch_size": 2, "learning_rate": 5e-4},
    }
    recipe = parse_recipe(table, assignments or (), origin="titans graft")
    from titanslab.cli.errors import Interrupted
    from titanslab.data.pool import cores
    from titanslab.runs.loading import prepare_process

    prepare_process()
    from titanslab.training.run import train as run

    try:
        result = run(recipe, output, resume=resume, processes=cores())
    except KeyboardInterrupt:
        raise Interrupted(_how_to_resume(output)) from None
    if result["loss"] is not None:
        typer.echo(f"{output}: {result['steps']} steps, last loss {result['loss']:.4f}")
    finish(output, recipe)


def finish(output: Path, recipe: Recipe) -> None:
    """Print the controls of a graft that was trained, in one process, and what can be done with it."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    from titanslab.cli.evaluate_graft import show_controls
    from titanslab.data.shards import token_folder

    section, data = recipe.model, recipe.data
    source = data.train if data.validation is None else data.validation
    if data.validation is None:
        typer.echo("data.validation is missing: the controls are measured on documents of the training", err=True)
    if token_folder(source) is not None:
        typer.echo(
            f"no controls: {source} holds tokens; titans evaluate graft --model {output} --data TEXT measures them"
        )
    else:
        split = data.split if data.validation is None else data.validation_split
        choice = {"documents": section.control_documents, "tokens": section.control_tokens, "full_context": None}
        reading = {
            "column": data.text_column, "split": split, "subset": data.subset, "text_documents": data.text_documents
        }  # fmt: skip
        device = "cpu" if recipe.training.cpu else "auto"
        show_controls(str(output), source, output / "controls.json", device, choice, reading)
    typer.echo("\n".join(what_next(output, memory=section.layers != "none")))


def what_next(output: Path, *, memory: bool) -> Iterator[str]:
    """Commands for the graft in `output`, ready to paste; `memory` is False for a control without one."""
    run = shlex.quote(str(output))
    yield "Next:"
    yield f'  titans generate --model {run} --prompt "Once upon a time"'
    yield f"  titans evaluate graft --model {run} --data BOOK.txt"
    if memory:
        yield from reading_commands(output)


def _one_or_all(sources: list[str]) -> str | list[str] | None:
    return sources[0] if len(sources) == 1 else sources or None


def _how_to_resume(output: Path) -> str:
    if not (output / "recipe.toml").exists():
        return "interrupted before training began; nothing was written"
    words = ["titans", "train", "--output", str(output), "--resume"]
    return f"interrupted; resume with: {shlex.join(words)}"
