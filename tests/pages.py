"""Code blocks of a page, as a reader would copy them, and a shell to run them in."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

TITANS = f'#!/bin/sh\nexec {sys.executable} -m titanslab.cli "$@"\n'


class Block(NamedTuple):
    """language: `sh`, `python`, `toml`, or empty for output. code: its text. before: the text of the page above it."""

    language: str
    code: str
    before: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text[: m.start()]) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def shell_with(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> Callable[[str], str]:
    """A function that runs a block and returns what it printed; `titans` and `programs` are found in `folder`."""
    folder.mkdir()
    for name, text in {"titans": TITANS, **programs}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def run(code: str, stdin: str = "") -> str:
        done = subprocess.run(["bash", "-ec", code], input=stdin, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
