"""`titans evaluate niah`: a needle in a haystack, by length and depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titanslab.cli.evaluate_task import default_output, run_task_verb

if TYPE_CHECKING:
    from titanslab.data.encode import TokenCounter
    from titanslab.evaluation.run_task import Cell

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def niah(
    model: Annotated[str, typer.Option("--model", "-m", help="A run folder or a saved model.", show_default=False)],
    lengths: Annotated[str, typer.Option(help="Lengths in tokens, such as 2k,4k,1M; k is 1024.")] = "2k,4k",
    samples: Annotated[int, typer.Option(min=1, help="Samples per length; RULER takes 500.")] = 100,
    variant: Annotated[
        str | None,
        typer.Option(
            help="single_1, single_2, single_3, or several with commas; default: all with --haystack, else single_1."
        ),
    ] = None,
    haystack: Annotated[
        str | None, typer.Option(help="Running text for single_2 and single_3: a file or a folder.")
    ] = None,
    adjectives: Annotated[str | None, typer.Option(help="Word list for keys, one word a line.")] = None,
    nouns: Annotated[str | None, typer.Option(help="The other word list for keys.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for results; default: MODEL/evaluation/niah; run again to go on."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same samples.")] = 42,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts at once.")] = 16,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most prompt tokens at once.")] = 1 << 16,
    piece: Annotated[int, typer.Option(min=1, help="Tokens a Titans model reads at once.")] = 4096,
    tokenizer_for_length: Annotated[
        str | None, typer.Option(help="What measures lengths: byte, a tokenizer; default: the model's own.")
    ] = None,
    sample_cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps samples; default: inside the output.")
    ] = None,
    learn: Annotated[
        bool, typer.Option("--learn/--no-learn", help="Whether memories write; off shows what they are for.")
    ] = True,
    forget: Annotated[
        bool,
        typer.Option("--forget/--no-forget", help="Whether memories fade; off for texts far beyond the training rows."),
    ] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")] = "auto",
) -> None:
    """Hide a needle in texts of several lengths and ask for it (RULER's S-NIAH).

    Example: [bold]titans evaluate niah --model runs/tiny --lengths 2k,4k,8k --samples 100[/bold]
    """

    def make(counter: TokenCounter, name: str) -> list[Cell]:
        from titanslab.evaluation.cells import niah_cells
        from titanslab.tasks.niah.samples import VARIANTS

        return niah_cells(
            variant or ("single_1" if haystack is None else ",".join(VARIANTS)),
            lengths,
            counter,
            name,
            haystack=haystack,
            adjectives=adjectives,
            nouns=nouns,
            seed=seed,
        )

    from titanslab.evaluation.run_model import TaskRun
    from titanslab.evaluation.table import niah_heat_map
    from titanslab.runs.devices import pick_device

    run = TaskRun(
        model,
        output or default_output(model, "niah"),
        samples,
        seed,
        max_new_tokens,
        batch_size,
        batch_tokens,
        piece,
        pick_device(device),
        tokenizer_for_length,
        sample_cache,
        learn,
        forget,
    )
    run_task_verb(run, make, {"task": "niah"}, kilo=1024, title="S-NIAH", heat_map=niah_heat_map)
