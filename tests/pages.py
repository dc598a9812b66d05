"""Code blocks of a page, as a reader would copy them."""

import re
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """language: `sh`, `python`, `toml`, or empty for output. code: its text. before: the text of the page above it."""

    language: str
    code: str
    before: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text[: m.start()]) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]
