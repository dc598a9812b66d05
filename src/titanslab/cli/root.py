"""The root of the command: its help, and the way to a verb, whose module is imported when the verb is called.

Help, version and wrong words are answered before typer builds its parser, which takes longer than all of that.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from titanslab.cli import VERBS

ABOUT = "Titans: language models with a neural memory that keeps learning while it reads."
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")  # pathlib starts more slowly
EXAMPLE = "titans train recipes/tiny.toml --output runs/tiny"
OPTIONS = {
    "--version": "Show the version.",
    "--debug": "Show the traceback of an error; stands before the verb.",
    "--help -h": "Show this message; titans VERB --help shows the options of a verb.",
}


def run(arguments: list[str]) -> int:
    """Run a verb, or show the help or the version; returns the exit code."""
    words = arguments[1:] if arguments[:1] == ["--debug"] else arguments
    if not words:
        show_help(to_stderr=True)
        return 2
    first, *rest = words
    if first in ("--help", "-h"):
        show_help()
        return 0
    if first == "--version":
        from titanslab._version import __version__

        print(f"titans-lab {__version__}")
        return 0
    if first not in VERBS:
        from titanslab.cli.errors import UsageError

        kind, known = ("option:", " ".join(OPTIONS).split()) if first.startswith("-") else ("command", VERBS)
        raise UsageError.of_name(kind, first, known, "titans")
    module = import_module(VERBS[first][0])
    from titanslab.cli.errors import INTERRUPTED
    from titanslab.cli.words import check_words

    if hasattr(module, "check_task_words"):  # a verb with verbs of its own
        module.check_task_words(rest)
    else:
        check_words(getattr(module, first), rest, f"titans {first}")
    with warnings.catch_warnings():
        warnings.showwarning = _shown(warnings.showwarning)
        result = verb_command(first)(args=rest, prog_name=f"titans {first}", standalone_mode=False)
    if result == INTERRUPTED:  # typer's value for Ctrl-C
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _shown(otherwise: Callable[..., None]) -> Callable[..., None]:
    """The function that shows a warning of this package in one line of its own, and others by `otherwise`."""

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any, **options: Any) -> None:
        if filename.startswith(PACKAGE):
            print(f"titans: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
        else:
            otherwise(message, category, filename, *more, **options)

    return show


def verb_command(name: str) -> Any:
    """The command of a verb of the table `VERBS`."""
    from titanslab.cli.options import command

    module, about = VERBS[name]
    return command(getattr(import_module(module), name), name, about)


def show_help(to_stderr: bool = False) -> None:
    """Print the verbs and the options of the root."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table

    console = Console(stderr=to_stderr, highlight=False)
    lines = ("[yellow]Usage:[/yellow] [bold]titans VERB ...[/bold]", ABOUT, f"Example: [bold]{EXAMPLE}[/bold]")
    console.print(Padding("\n\n".join(lines), (1, 1)))
    verbs = {name: about for name, (_, about) in VERBS.items()}
    for title, shown in (("Options", OPTIONS), ("Commands", verbs)):
        table = Table.grid(padding=(0, 2))
        for name, about in shown.items():
            table.add_row(f"[bold cyan]{name}[/bold cyan]", about)
        console.print(Panel(table, title=title, title_align="left", border_style="dim"))
