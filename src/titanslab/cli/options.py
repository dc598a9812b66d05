"""The options that several verbs share, the command of a verb, and the check of its options."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from titanslab.cli.errors import UsageError

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


def check_options(verb: Callable[..., Any] | typer.Typer, words: Sequence[str], name: str) -> None:
    """Raise UsageError for the first long option that a verb does not have, with the nearest name.

    Typer finds it as well, after it has built a parser. A verb with verbs of its own is left to it.
    """
    if isinstance(verb, typer.Typer):
        return
    flags, valued = {"--help", "-h"}, set[str]()
    for key, hint in get_type_hints(verb, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, typer.models.OptionInfo):
                given = (option.default, *(option.param_decls or ()))  # in Annotated the first name comes as default
                names = [text for text in given if isinstance(text, str)] or [f"--{key.replace('_', '-')}"]
                is_flag = hint.__origin__ in (bool, bool | None)
                (flags if is_flag else valued).update(part for text in names for part in text.split("/"))
    left = iter(words)
    for word in left:
        if word == "--":
            return
        option_name, equals, _ = word.partition("=")
        if option_name in valued and not equals:
            next(left, None)  # its value, which may begin with a dash
        elif word.startswith("--") and option_name not in flags | valued:
            raise UsageError.of_name("option:", option_name, sorted(flags | valued), name)
