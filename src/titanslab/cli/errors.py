"""Exceptions as one line on stderr and an exit code."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

import typer

FAILED, INTERRUPTED = 2, 130
LONGEST = 600
LESS = "lower the batch size, the context length or the model's size"
ALLOCATION = re.compile(
    r"DefaultCPUAllocator: .*tried to allocate (\d+) bytes|Storage size calculation overflowed|multiplication overflow"
)
# ClickException, of typer's own copy of click or of the installed click
CLICK_ERROR: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


class Interrupted(Exception):
    """Ctrl-C during work that can be resumed; the message says how."""


class UsageError(Exception):
    """A wrong verb or option of `command`, such as "titans train", whose help is named after the message."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(f"{message} (see {command} --help)")

    @classmethod
    def of_name(cls, kind: str, name: str, known: Iterable[str], command: str) -> UsageError:
        """The error for a name that is none of the `known` ones, with the nearest of these."""
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
        quoted = name if kind.endswith(":") else repr(name)
        return cls(f"No such {kind} {quoted}" + (f"; did you mean {near[0]}?" if near else ""), command)


def wants_traceback(arguments: list[str], error: BaseException) -> bool:
    """Whether to raise the error: --debug before the verb or TITANS_DEBUG is set, and it is not a plain exit."""
    asked = "--debug" in arguments[:1] or os.environ.get("TITANS_DEBUG", "0") not in ("", "0")
    expected = (SystemExit, KeyboardInterrupt, typer.Exit, typer.Abort, Interrupted, UsageError, CLICK_ERROR)
    return asked and not isinstance(error, expected)


def exit_code(error: BaseException) -> int:
    """Print the error and its fix in one line on stderr; returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):  # the reader of stdout has ended, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nothing may be flushed at exit
        return 0
    if isinstance(error, Interrupted | KeyboardInterrupt | typer.Abort):
        text, code = str(error) if isinstance(error, Interrupted) else "interrupted", INTERRUPTED
    elif isinstance(error, CLICK_ERROR):  # typer's error about an option or argument
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "titans"
        text, code = f"error: {' '.join(error.format_message().split())} (see {command} --help)", error.exit_code
    elif isinstance(error, UsageError):
        text, code = f"error: {error}", FAILED
    else:
        text, code = f"error: {describe(error)}", FAILED
    print(f"titans: {text}", file=sys.stderr, flush=True)
    return code


def describe(error: BaseException) -> str:
    """An error in one line: its message, with its type if the message was not written for users."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename!r}: {error.strerror}"
    if len(text) > LONGEST:
        text = text[:LONGEST] + " ..."
    if allocation := ALLOCATION.search(text):  # torch raises RuntimeError for the CPU's memory
        size = f"{int(allocation[1]) / 2**30:,.1f} GiB at once" if allocation[1] else "a tensor beyond any memory"
        return f"out of memory: {size}; {LESS}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or text == "std::bad_alloc":
        return f"out of memory: {text or 'no detail'}; {LESS}"
    if isinstance(error, ValueError | FileNotFoundError | ImportError | FloatingPointError | ConnectionError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (unexpected; TITANS_DEBUG=1 shows where)"


def in_utf8(text: str, name: str) -> str:
    """`text` itself; ValueError, before a tokenizer raises a less clear one, if the terminal's bytes are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not text in UTF-8 (character {error.start + 1}); convert it, or use a terminal in UTF-8"
        ) from error
    return text
