"""The options that several verbs share, and the command of a verb."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

MOST_SEED = 2**32 - 1

TextFile = Annotated[Path, typer.Argument(help="A text file in UTF-8, also .gz, .xz, .bz2, .zst.", show_default=False)]
MemoryModel = Annotated[
    str | None, typer.Option("--model", "-m", help="A run folder or a saved model; default: the memory file's own.")
]
Learn = Annotated[
    bool | None,
    typer.Option("--learn/--no-learn", help="Whether the memories are updated; default: as in the memory file."),
]
Template = Annotated[
    str | None,
    typer.Option(
        help=r"The text that is read for a question, such as ' {question}'; \n is a new line. Default: the chat "
        r"template in the model's folder, else \n\n{question}\n."
    ),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest answer in tokens; default: the model's own, else 128.")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier command finished there.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one.")]


def command(verb: Callable[..., Any] | typer.Typer, name: str, about: str) -> Any:
    """The command of a verb: its options are the function's parameters; `about` is its line in a list of commands."""
    app = verb if isinstance(verb, typer.Typer) else typer.Typer(add_completion=False, rich_markup_mode="rich")
    if app is not verb:
        app.command()(verb)
    made: Any = typer.main.get_command(app)
    made.name, made.short_help, made.help = name, about, flowing(made.help)
    made.context_settings |= {"help_option_names": ["-h", "--help"]}
    return made


def flowing(text: str | None) -> str | None:
    """A help text whose paragraphs are one line each, which the terminal's width breaks."""
    return None if text is None else re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


def output_folder(path: Path) -> Path:
    """`path`, where a verb writes its results; ValueError if --output is a file or cannot be written."""
    from titanslab.files import check_writable

    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {str(path)!r} is a file; give a folder")
    check_writable(path, "--output")
    return path
