"""`titans train`: train a model from a recipe into a run folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titanslab.cli.suggestions import reading_commands

if TYPE_CHECKING:
    from titanslab.training.recipe import Recipe


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe, a TOML file; with --resume it may be left out.", show_default=False)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as training.learning_rate=1e-3."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run folder; default: runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Train a model from a recipe into a run folder.

    Example: [bold]titans train recipes/tiny.toml --set training.steps=200 --output runs/tiny[/bold]

    The folder holds the recipe with every default filled in, metrics.jsonl, checkpoints, versions, and at
    the end the model, its tokenizer and a picture of the losses. Ctrl-C saves a checkpoint at the end of the step;
    pressed again it stops at once. A run that was stopped or killed continues with --resume and gives the
    same losses. On several GPUs: torchrun --nproc-per-node 8 -m titanslab.cli train ...
    """
    from titanslab.training.recipe_file import read_recipe_file

    if recipe is None:
        if not (resume and output is not None):
            raise ValueError("a recipe is missing: titans train RECIPE.toml; without one, --output RUN --resume")
        recipe = output / "recipe.toml"
        if not recipe.exists():
            raise ValueError(f"output folder {str(output)!r} holds no run to resume (no recipe.toml)")
    read_recipe_file(recipe)  # before the libraries of models are loaded
    from titanslab.cli.errors import Interrupted
    from titanslab.runs.loading import prepare_process
    from titanslab.training.recipe import load_recipe

    output = output or Path("runs") / recipe.stem
    settings = load_recipe(recipe, assignments or ())
    prepare_process()
    from titanslab.data.pool import cores
    from titanslab.training.run import train as run

    try:
        result = run(settings, output, resume=resume, processes=cores())
    except KeyboardInterrupt:
        raise Interrupted(_how_to_resume(recipe, assignments or [], output)) from None
    if result["loss"] is not None:
        typer.echo(f"{output}: {result['steps']} steps, last loss {result['loss']:.4f}")
        if settings.kind == "graft":
            from titanslab.cli.graft import finish

            finish(output, settings)
            return
        typer.echo("\n".join(_what_next(output, settings)))


def _what_next(output: Path, settings: Recipe) -> Iterator[str]:
    """Lines with the picture of the losses and with commands for the model in `output`, ready to paste."""
    from titanslab.data.shards import token_folder
    from titanslab.tasks.table import TASKS

    if (output / "loss.png").exists():
        yield f"The loss by step: {output / 'loss.png'}"
    yield "Next:"
    run, data = shlex.quote(str(output)), settings.data
    if settings.kind == "series":
        file = shlex.quote(data.file)
        yield f"  titans evaluate forecasting --model {run} --data {file}"
        yield f"  titans forecast {file} --model {run}"
        return
    if settings.kind == "sequences":
        aside = output / "test.tsv"
        yield f"  titans evaluate dna --model {run} --data {shlex.quote(str(aside)) if aside.exists() else 'TEST.tsv'}"
        return
    if data.tokenizer == "dna":
        yield f"  titans track GENOME.fa --model {run}"
        return
    if data.train is not None:
        yield f'  titans generate --model {run} --prompt "Once upon a time"'
        for source in (data.validation, data.train):
            if source is not None and token_folder(source) is None:
                text = source if isinstance(source, str) else source[0]
                yield f"  titans evaluate --model {run} --data {shlex.quote(text)}"
                break
    if data.task is not None and TASKS[data.task].cells is not None:
        yield f"  titans evaluate {data.task} --model {run} --samples 10"
    if _has_memory(output):
        yield from reading_commands(output)


def _has_memory(output: Path) -> bool:
    from titanslab.models.config import TitansConfig
    from titanslab.runs.loading import load_config

    config = load_config(output)
    return isinstance(config, TitansConfig) and config.variant != "attention"


def _how_to_resume(recipe: Path, assignments: list[str], output: Path) -> str:
    from titanslab.runs.checkpoints import last_complete

    if not (output / "recipe.toml").exists():
        return "interrupted before training began; nothing was written"
    last = last_complete(output / "checkpoints")
    where = f"the last checkpoint is {last.name}" if last else "there is no checkpoint yet"
    words = ["titans", "train", str(recipe), *(w for a in assignments for w in ("--set", a)), "--output", str(output)]
    return f"interrupted; {where}; resume with: {shlex.join([*words, '--resume'])}"
