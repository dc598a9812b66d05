"""`titans train`: train a model from a recipe into a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


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
    the end the model and its tokenizer. A run that was stopped or killed continues with --resume and gives the
    same losses. On several GPUs: torchrun --nproc-per-node 8 -m titanslab.cli train ...
    """
    from titanslab.cli.errors import Interrupted
    from titanslab.runs.loading import quiet_libraries
    from titanslab.training.recipe import load_recipe

    if recipe is None:
        if not (resume and output is not None):
            raise ValueError("a recipe is missing: titans train RECIPE.toml; without one, --output RUN --resume")
        recipe = output / "recipe.toml"
        if not recipe.exists():
            raise ValueError(f"output folder {str(output)!r} holds no run to resume (no recipe.toml)")
    output = output or Path("runs") / recipe.stem
    settings = load_recipe(recipe, assignments or ())
    quiet_libraries()
    from titanslab.training.run import train as run

    try:
        result = run(settings, output, resume=resume)
    except KeyboardInterrupt:
        raise Interrupted(_how_to_resume(recipe, assignments or [], output)) from None
    if result["loss"] is not None:
        typer.echo(f"{output}: {result['steps']} steps, last loss {result['loss']:.4f}")


def _how_to_resume(recipe: Path, assignments: list[str], output: Path) -> str:
    from titanslab.runs.checkpoints import last_complete

    if not (output / "recipe.toml").exists():
        return "interrupted before training began; nothing was written"
    last = last_complete(output / "checkpoints")
    where = f"the last checkpoint is {last.name}" if last else "there is no checkpoint yet"
    words = ["titans", "train", str(recipe), *(w for a in assignments for w in ("--set", a)), "--output", str(output)]
    return f"interrupted; {where}; resume with: {shlex.join([*words, '--resume'])}"
