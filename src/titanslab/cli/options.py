"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

TextFile = Annotated[Path, typer.Argument(help="A text file in UTF-8, also .gz, .xz, .bz2, .zst.", show_default=False)]
MemoryModel = Annotated[
    str | None, typer.Option("--model", "-m", help="A run folder or a saved model; default: the memory file's own.")
]
Learn = Annotated[
    bool | None,
    typer.Option("--learn/--no-learn", help="Whether the memories are updated; default: as in the memory file."),
]
Template = Annotated[str, typer.Option(help=r"The text that is read for a question; \n is a new line.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")]

TEMPLATE = r"\n\n{question}\n"
