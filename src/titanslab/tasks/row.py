"""A training row, and the helpers of the functions that make rows."""

import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from titanslab.data.encode import TextEncoder
from titanslab.data.text import iter_texts


class Row(NamedTuple):
    """A training row of one sample.

    `hints` are `(token, block, id)`: at that token, the output of that block should predict that id; tokens and
    blocks are counted from 0. `hinted_blocks` is the number of blocks that hints may name, 0 for a row without hints.
    """

    ids: list[int]
    labels: list[int]
    hints: Sequence[tuple[int, int, int]] = ()
    hinted_blocks: int = 0


MakeRow = Callable[[int, int], Row]  # (length, seed) -> a row of at most `length` tokens
MAX_CHARS = 50_000_000  # read of a haystack or of books
ATTEMPTS = 64  # tries to fit a row to its length, each with less background


def scored(prompt: list[int], answer: list[int]) -> Row:
    """A row in which only the answer's tokens have labels."""
    return Row(prompt + answer, [-100] * len(prompt) + answer)


def ending(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: end-of-text, or a full stop for a tokenizer without that token."""
    end = getattr(tokenizer, "eos_token_id", None)
    return [end] if end is not None else TextEncoder(tokenizer).ids(".")


def fit(make: Callable[[int], Row], size: int, length: int, rng: random.Random) -> Row | None:
    """The row of `make(size)`, or of a smaller size, that has at most `length` tokens; None after `ATTEMPTS` sizes.

    Each call of `make` draws the same numbers from `rng`.
    """
    state = rng.getstate()
    for _ in range(ATTEMPTS):
        rng.setstate(state)
        row = make(size)
        if len(row.ids) <= length:
            return row
        size -= len(row.ids) - length
    return None


def too_short(length: int, name: str) -> ValueError:
    """The error for a length that no sample of the task fits."""
    return ValueError(f"a sample of {name} does not fit {length} tokens; raise min_length or sequence_length")


def read_some(path: str, max_chars: int = MAX_CHARS) -> Sequence[str]:
    """The first texts of a file or folder, `max_chars` characters in total."""
    texts, left = list[str](), max_chars
    for text in islice(iter_texts(path), 100_000):
        texts.append(text[:left])
        left -= len(texts[-1])
        if left <= 0:
            break
    return texts
