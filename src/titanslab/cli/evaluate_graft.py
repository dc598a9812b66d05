"""`titans evaluate graft`: the controls of a grafted memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import Device, output_folder

ABOUT = "Whether a grafted memory is used: loss by distance in five conditions."


def graft(
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The folder of a graft, see titans graft.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            "-d",
            help="Text, JSONL, parquet, a folder, or a dataset on the hub; repeatable.",
            show_default=False,
        ),
    ],
    documents: Annotated[int, typer.Option(min=1, help="Documents to measure, the longest ones.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each document at most.")] = 4096,
    full_context: Annotated[
        int | None, typer.Option(min=1, help="Tokens to which full context is measured; default: the base's positions.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="The column of JSONL, parquet or hub data.")] = "text",
    split: Annotated[str, typer.Option(help="The split of a hub dataset.")] = "test",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for JSON and PNG; default: MODEL/evaluation.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure the loss by distance with the memory on, off, of another document, window alone, and full context.

    Example: [bold]titans evaluate graft --model my-memory --data books/[/bold]

    A memory is used where the loss beyond the window rises without it, and rises with the memory of another document
    in its place. The last line says so, or names the likely cause where it is not used.
    """
    from titanslab.runs.loading import find_model_folder

    find_model_folder(model)
    source: Any = data[0] if len(data) == 1 else data
    place = output_folder(output or Path(model) / "evaluation") / "controls.json"
    choice = {"documents": documents, "tokens": max_tokens, "full_context": full_context}
    show_controls(model, source, place, device, choice, {"column": text_column, "split": split})


def show_controls(
    model: str, source: Any, place: Path, device: str, choice: dict[str, Any], reading: dict[str, Any]
) -> None:
    """Measure the controls of a graft, print them, and write them to `place` and a picture beside it.

    Args:
        model: the folder of the graft. source: the text, for `open_corpus`. place: a name that ends in .json.
        device: of the model.
        choice: `documents` and `tokens` of `longest_documents`, and `full_context` of `measure_controls`.
        reading: options of `open_corpus`.
    """
    from titanslab.data import open_corpus
    from titanslab.runs.loading import open_model

    corpus = open_corpus(source, "--data", streaming=True, **reading)
    network, tokenizer = open_model(model, device)
    from titanslab.evaluation.graft.controls import measure_controls
    from titanslab.evaluation.graft.documents import longest_documents
    from titanslab.evaluation.graft.verdict import table, verdict, write_controls
    from titanslab.graft import graft_of
    from titanslab.progress import bar
    from titanslab.runs.versions import versions

    graft_of(network)
    rows = longest_documents(corpus, tokenizer, choice["documents"], choice["tokens"])
    with bar("measuring the controls", "tokens") as show:
        found = measure_controls(network, rows, full_context=choice["full_context"], progress=show)
    about = {"model": str(model), "data": source, "versions": versions()}
    written = write_controls(found, place, f"{Path(model).name} on {Path(str(source)).name}", about)
    from rich.console import Console

    console = Console()
    console.print(table(found))
    console.print(verdict(found), highlight=False, soft_wrap=True)
    console.print("\n".join(map(str, written)), highlight=False, soft_wrap=True)
