"""The root of the command: global options and the table of verbs."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from titanslab._version import __version__
from titanslab.cli import VERBS
from titanslab.cli.options import command


class VerbGroup(typer.core.TyperGroup):
    """A command group whose verbs, those of the table `VERBS`, are imported when they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        module, text = VERBS[cmd_name]
        if ctx.resilient_parsing or getattr(ctx, "titans_listing", False):
            return typer.core.TyperCommand(cmd_name, help=text)
        return command(getattr(import_module(module), cmd_name), cmd_name, text)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.titans_listing = True  # the list of verbs needs only their help lines
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=VerbGroup,
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
