"""`titans quickstart`: see a memory recall facts that a window cannot, on this machine, in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

WANTED = 5  # expected recall as a multiple of the window-only model's


@app.command()
def quickstart(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model, results.json and the pictures.")
    ] = Path("quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the text's order and the sample.")] = 0,
    minutes: Annotated[
        float | None, typer.Option(help="Training time of the Titans; default: about two minutes.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A run of seconds that learns nothing, to test that it works.")
    ] = False,
) -> None:
    """Train a small Titans and a window-only transformer, and compare the facts that they recall.

    Both have the same size and read the same bytes: books in which facts are stated and repeated. It takes less
    than five minutes on two cores and writes a folder to generate from.

    Example: [bold]titans quickstart --output quickstart --seed 1[/bold]
    """
    from titanslab.quickstart.settings import settings
    from titanslab.runs.quiet import quiet_libraries

    chosen = settings(minutes, smoke)
    quiet_libraries()
    from titanslab.progress import bar
    from titanslab.quickstart.run import quickstart as run

    results = run(chosen, output, seed, lambda title: bar(f"{title:34}", keep=True))
    _show(results, output)


def _show(results: dict[str, Any], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from titanslab.quickstart.run import NAMES

    console = Console(highlight=False)
    table = Table("", *(NAMES[kind] for kind in NAMES), title="Same size, same bytes, same seed")
    models = [results[kind] for kind in NAMES]

    def row(label: str, form: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(label, *(form(model) for model in models))

    row("parameters", lambda m: f"{m['parameters']:,}")
    row("bytes read in training", lambda m: f"{m['bytes_read']:,}")
    row("training, seconds", lambda m: f"{m['training_seconds']:.0f}")
    row("validation, bits per byte", lambda m: f"{m['bits_per_byte']:.3f}")
    table.add_section()
    for distance in models[0]["recall"]:
        where = "beyond the window" if distance > results["window_reach"] else "within its reach"
        row(f"recall {distance:,} bytes back ({where})", lambda m, d=distance: f"{m['recall'][d]:.0%}")  # type: ignore[misc]
    table.add_section()
    row("recall beyond the window", lambda m: f"{m['recall_beyond_window']:.1%}")
    console.print(table)
    times, chance = results["times_the_window"], results["chance"]
    asked = results["settings"]["questions"]
    line = f"Beyond the window the Titans recalls {times:.1f} times as much as the window alone"
    console.print(f"{line} (chance is {chance:.0%}; {asked} questions per distance).")
    if times < WANTED:
        console.print(f"That is less than the {WANTED} times expected: this run was too short, or went badly.")
    sample = results["sample"]
    console.rule("a sample: the prompt, then the continuation by the Titans", align="left")
    console.print(sample["prompt"], style="dim", markup=False, end="")
    console.print(sample["text"], style="bold", markup=False)
    console.rule()
    console.print(f"Pictures: {output / 'recall.png'}, {output / 'surprise.png'}; numbers: {output / 'results.json'}")
    console.print(f"{results['seconds']:.0f} seconds in all. Now generate from it:")
    fact = "(Aldora=31) It was a dark night. (Aldora="
    console.print(
        f'  titans generate --model {output} --max-new-tokens 100 --prompt "{fact}"', markup=False, soft_wrap=True
    )
