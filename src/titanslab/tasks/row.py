"""A row to train on, and what the makers of rows share; a maker is `(length, seed) -> Row`, at most `length` tokens."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from titanslab.data.encode import encoder_of
from titanslab.data.text import iter_texts


class Row(NamedTuple):
    """Tokens, their labels, and what a block's output should say: `(token, block, id)`, both counted from 0."""

    ids: list[int]
    labels: list[int]
    hints: Sequence[tuple[int, int, int]] = ()


MakeRow = Callable[[int, int], Row]
ATTEMPTS = 64  # to fit a row by asking for less background


def scored(prompt: list[int], answer: list[int]) -> Row:
    """A row whose answer alone counts."""
    return Row(prompt + answer, [-100] * len(prompt) + answer)


def encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """`text -> ids` of a tokenizer that `Mixture` has checked."""
    encode = encoder_of(tokenizer)
    assert encode is not None, "Mixture has checked that the tokenizer encodes"
    return encode


def ending(tokenizer: Any) -> list[int]:
    """What ends an answer: the end-of-text token, or a full stop where there is none."""
    end = getattr(tokenizer, "eos_token_id", None)
    return [end] if end is not None else encoder(tokenizer)(".")


def too_short(length: int, name: str) -> ValueError:
    """The error of a row without room for a sample."""
    return ValueError(f"a sample of {name} does not fit {length} tokens; raise min_length or sequence_length")


def read_some(path: str, max_chars: int) -> Sequence[str]:
    """Texts up to `max_chars` characters together."""
    texts, left = list[str](), max_chars
    for text in islice(iter_texts(path), 100_000):
        texts.append(text[:left])
        left -= len(texts[-1])
        if left <= 0:
            break
    return texts
