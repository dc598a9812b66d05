"""Lines that a user types: with editing, history and completion on a terminal, plain from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

PROMPT = "> "


def line_reader(history: Path, words: Sequence[str]) -> Callable[[], str | None]:
    """A function that returns the next line of stdin, None at its end.

    Args:
        history: the file of lines typed before; on a terminal alone.
        words: completed by Tab at the start of a line.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):
            return _editor(history, words)
    if sys.stdin.isatty():
        with suppress(ImportError):  # some builds of Python lack it
            import readline  # noqa: F401  gives input() the editing of a line

    def plain() -> str | None:
        try:
            return input(PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            return None

    return plain


def _editor(history: Path, words: Sequence[str]) -> Callable[[], str | None]:
    os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")  # a terminal's answer would mix with keys typed ahead
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.shortcuts import CompleteStyle

    known: History = InMemoryHistory()
    with suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True)
        with open(history, "ab"):
            known = FileHistory(str(history))
    session: PromptSession[str] = PromptSession(
        history=known,
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_history_search=True,
    )

    def edited() -> str | None:
        try:
            return session.prompt(PROMPT)
        except EOFError:
            return None

    return edited
