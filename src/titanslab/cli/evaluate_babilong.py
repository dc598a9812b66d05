"""`titans evaluate babilong`: facts scattered over books, by task and length."""

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
def babilong(
    model: Annotated[str, typer.Option("--model", "-m", help="A run folder or a saved model.", show_default=False)],
    facts: Annotated[
        str | None,
        typer.Option(
            help="Folder of bAbI's files, qa1_..._test.txt and so on; default: stories of our own, qa1 to qa5."
        ),
    ] = None,
    tasks: Annotated[str, typer.Option(help="qa1 to qa10: a range, or several with commas.")] = "qa1-qa5",
    lengths: Annotated[
        str, typer.Option(help="Lengths in tokens, such as 0k,1k,10M; k is 1000; 0k is facts alone.")
    ] = "0k,1k",
    samples: Annotated[int, typer.Option(min=1, help="Samples per task and length.")] = 100,
    background: Annotated[str | None, typer.Option(help="Books to hide the facts in: a file or a folder.")] = None,
    split: Annotated[str, typer.Option(help="test or train questions.")] = "test",
    form: Annotated[str, typer.Option(help="Form of the prompt: base, the context and the question.")] = "base",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for results; default: MODEL/evaluation/babilong; run again to go on.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same samples.")] = 42,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts at once.")] = 16,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most prompt tokens at once.")] = 1 << 16,
    piece: Annotated[int, typer.Option(min=1, help="Tokens a Titans model reads at once.")] = 4096,
    tokenizer_for_length: Annotated[
        str | None,
        typer.Option(
            help="What measures lengths: byte, a tokenizer, a folder with GPT-2's encoder.json and vocab.bpe "
            "(the benchmark's); default: the model's own."
        ),
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
    """Scatter facts over books and ask about them (BABILong); official and corrected scores.

    Example: [bold]titans evaluate babilong --model runs/tiny --facts babi/ --background books.jsonl[/bold]
    """

    def make(counter: TokenCounter, name: str) -> list[Cell]:
        from titanslab.evaluation.cells import babilong_cells

        return babilong_cells(
            tasks,
            lengths,
            counter,
            name,
            facts=facts,
            background=background,
            split=split,
            form=form,
            seed=seed,
        )

    from titanslab.evaluation.run_model import TaskRun
    from titanslab.evaluation.table import babilong_heat_map
    from titanslab.runs.devices import pick_device

    run = TaskRun(
        model,
        output or default_output(model, "babilong"),
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
    run_task_verb(run, make, {"task": "babilong"}, kilo=1000, title="BABILong", heat_map=babilong_heat_map)
