"""`titans quickstart`: see a memory recall facts that a window cannot, on this machine, in minutes."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import MOST_SEED, Overwrite

WANTED = 5  # expected recall as a multiple of the window-only model's
WINDOW_WANTED = 0.8  # expected recall of the window-only model within its reach


def quickstart(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model, results.json and the pictures.")
    ] = Path("quickstart"),
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of the weights, the text's order and the sample.")
    ] = 0,
    minutes: Annotated[
        float | None, typer.Option(help="Training time of the Titans; default: about two minutes.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A run of seconds that learns nothing, to test that it works.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a small Titans and a window-only transformer, and compare the facts that they recall.

    Both have the same size, the same short convolutions and the same start, and read the same bytes: books in which
    facts are stated and repeated. It takes less than five minutes on two cores and writes a folder to generate from.

    Example: [bold]titans quickstart --output quickstart --seed 1[/bold]
    """
    from titanslab.quickstart.settings import settings
    from titanslab.runs.loading import prepare_process

    chosen = settings(minutes, smoke)
    prepare_process()
    from rich.console import Console
    from rich.table import Table

    from titanslab.quickstart import run

    results = run.quickstart(chosen, output, seed, overwrite)
    console = Console(highlight=False)
    table = Table("", *run.NAMES.values(), title="Same size, same start, same bytes, same seed")
    models = [results[kind] for kind in run.NAMES]

    def row(label: str, form: str, *keys: Any) -> None:
        """Add the value of each model under the keys, one inside the other."""
        table.add_row(label, *(format(reduce(getitem, keys, model), form) for model in models))

    row("parameters", ",", "parameters")
    row("bytes read in training", ",", "bytes_read")
    row("training, seconds", ".0f", "training_seconds")
    row("validation, bits per byte", ".3f", "bits_per_byte")
    table.add_section()
    for distance in models[0]["recall"]:
        where = "beyond the window" if distance > results["window_reach"] else "within its reach"
        row(f"recall {distance:,} bytes back ({where})", ".0%", "recall", distance)
    table.add_section()
    row("recall within the window's reach", ".1%", "recall_within_window")
    row("recall beyond the window", ".1%", "recall_beyond_window")
    console.print(table)
    times, chance = results["times_the_window"], results["chance"]
    asked = results["settings"]["questions"]
    titans, window = (model["recall_beyond_window"] for model in models)
    line = f"Beyond the window the Titans recalls {titans:.0%} of the facts and the window alone {window:.1%}"
    console.print(f"{line} (chance is {chance:.0%}; {asked} questions per distance).")
    within = results["window"]["recall_within_window"]
    console.print(f"Within its reach of {results['window_reach']} bytes the window alone recalls {within:.0%}.")
    if within < WINDOW_WANTED:
        console.print(f"That is less than the {WINDOW_WANTED:.0%} expected: it was trained too little to be compared.")
    if times < WANTED:
        console.print(f"The Titans recalls less than the {WANTED} times expected: the run was too short or went badly.")
    sample = results["sample"]
    console.rule("a sample: the prompt, then the continuation by the Titans", align="left")
    console.print(sample["prompt"], style="dim", markup=False, end="")
    console.print(sample["text"], style="bold", markup=False)
    console.rule()
    console.print(f"Pictures: {output / 'recall.png'}, {output / 'surprise.png'}; numbers: {output / 'results.json'}")
    console.print(f"{results['seconds']:.0f} seconds in all. Now generate from it:")
    line = f'titans generate --model {output} --max-new-tokens 100 --prompt "(Aldora=31) It was a dark night. (Aldora="'
    console.print(f"  {line}", markup=False, soft_wrap=True)
