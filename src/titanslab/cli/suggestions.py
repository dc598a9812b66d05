"""Commands that other commands suggest when they are done."""

import shlex
from collections.abc import Iterator
from pathlib import Path


def reading_commands(output: Path) -> Iterator[str]:
    """Commands that read a text into the memory of the model in `output` and ask about it, ready to paste."""
    memory = shlex.quote(str(output / "book.memory"))
    yield f"  titans read book.txt --model {shlex.quote(str(output))} --save {memory}"
    yield f'  titans ask --memory {memory} "QUESTION"'
