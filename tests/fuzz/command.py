"""A verb of `titans` in this process, and the verdict on how it ended."""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

DONE, REFUSED, FAULT = "done", "refused", "fault"


@dataclass(frozen=True)
class Answer:
    """How a command ended.

    Args:
        verdict: `DONE`; `REFUSED`, with one line for the user; or `FAULT`, anything else.
        text: that line, or the words for the fault.
        out: the command's standard output.
    """

    verdict: str
    text: str = ""
    out: str = ""


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Args:
        name: the change, in words.
        run: gives the input to the command.
        refuse: whether nothing but a refusal is right, since a part of the input is lost or false.
    """

    name: str
    run: Callable[[], Answer]
    refuse: bool = False


def titans(*words: object, stdin: str = "") -> Answer:
    """Run `titans WORDS`."""
    from titanslab.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    except Exception as error:  # with TITANS_DEBUG=1 the command lets it through
        err.write(traceback.format_exc() + f"titans: error: {error}")
        code = 2
    finally:
        sys.stdin = before
    said = err.getvalue()
    if code == 0:
        return Answer(DONE, said[-200:], out.getvalue())
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    if code != 2 or not last.startswith("titans: error: "):
        return Answer(FAULT, f"exit code {code} after {said[-300:]!r}")
    if "(unexpected;" in last or "Traceback (most recent call last)" in said:
        return Answer(FAULT, said if "Traceback" in said else last)
    return Answer(REFUSED, last, out.getvalue())


def judged(call: Callable[[], object]) -> Answer:
    """The same for a call of the library, whose exceptions are put into words as the command does."""
    from titanslab.cli.errors import describe

    try:
        call()
    except Exception as error:
        text = describe(error)
        return Answer(FAULT if "(unexpected;" in text else REFUSED, text)
    return Answer(DONE)
