"""The root of the command: global options and the table of verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from titanslab._version import __version__
from titanslab.cli import VERBS
from titanslab.cli.lazy import lazy_group

app = typer.Typer(
    cls=lazy_group(VERBS),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"titans-lab {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Titans: language models with a neural memory that keeps learning while it reads.

    Example: [bold]titans train recipes/tiny.toml --output runs/tiny[/bold]
    """
