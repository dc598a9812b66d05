"""Reading a text file into a model's memory piece by piece, with progress, from any place."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from titanslab.data import TextEncoder
from titanslab.data.text import TextPiece, TextSource
from titanslab.reading.models import fault_of, read_pieces


@dataclass(frozen=True)
class Place:
    """A place in a text between two tokens.

    Args:
        start: byte of the decompressed text at which a piece of text begins.
        tokens: number of tokens between there and the place.
    """

    start: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class ReadProgress:
    """The progress of one call of `read_text`.

    Args:
        tokens, seconds: read and passed in this call.
        tokens_per_second: speed over the last pieces.
        bytes, first_byte, total_bytes: places in the file, compressed or not: now, at the call's start, at the end.
    """

    tokens: int
    bytes: int
    first_byte: int
    total_bytes: int
    seconds: float
    tokens_per_second: float

    @property
    def seconds_left(self) -> float:
        """The time that the rest of the file takes at this call's mean speed in bytes."""
        return self.seconds / max(1, self.bytes - self.first_byte) * (self.total_bytes - self.bytes)


@dataclass(frozen=True)
class ReadStep:
    """The model's cache, the place in the text and the progress after a piece."""

    cache: Any
    place: Place
    progress: ReadProgress


def read_text(
    model: Any,
    path: str | os.PathLike[str],
    tokenizer: Any,
    cache: Any = None,
    *,
    place: Place | None = None,
    piece_size: int | None = None,
    learn: bool | None = None,
    write_scale: float | None = None,
) -> Iterator[ReadStep]:
    """Read a text file piece by piece; each step that was yielded stays valid when reading stops.

    Args:
        model: a Titans model, or one with a graft.
        path: text in UTF-8, also .gz, .xz, .bz2, .zst.
        tokenizer: of the model; its start token comes first where `cache` is None.
        place: the place to continue from, of an earlier `ReadStep` of the same file; None = the start.
        cache, piece_size, learn, write_scale: as in `TitansForCausalLM.read`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not UTF-8, damaged, or without text, or shorter than `place`.
        FloatingPointError: a piece made the memory not finite; the steps before it are valid.
    """
    source = TextSource(path)
    tokens = _Tokens(source, tokenizer, place, with_start=cache is None)
    begin = time.perf_counter()
    recent = deque([(begin, 0)], maxlen=20)
    before, done = 0 if cache is None else cache.columns, 0
    for state in read_pieces(model, tokens, cache, piece_size=piece_size, learn=learn, write_scale=write_scale):
        if name := fault_of(state):
            raise FloatingPointError(
                f"reading {source.path} made numbers that are not finite in {name!r} between token {done:,} and "
                f"{state.columns - before:,}"
            )
        done = state.columns - before
        now = time.perf_counter()
        recent.append((now, done))
        speed = (done - recent[0][1]) / max(now - recent[0][0], 1e-9)
        first, (place, read) = tokens.first_byte, tokens.place_after(done)
        yield ReadStep(state, place, ReadProgress(done, read, first, source.size, now - begin, speed))


def first_tokens(source: TextSource, tokenizer: Any, count: int, *, with_start: bool) -> tuple[list[int], bool]:
    """The first `count` tokens of a text, and whether it has no more; ValueError where it is empty.

    Args:
        with_start: whether the tokenizer's start token stands before the text.
    """
    tokens = chain.from_iterable(block[0].tolist() for block in _Tokens(source, tokenizer, None, with_start))
    ids = list(islice(tokens, count + 1))
    return ids[:count], len(ids) <= count


class _Tokens:
    """The tokens of a text from `place` on, an iterable of `[1, T]`, with the place after any number of them.

    Iterating raises a ValueError where the whole text is empty.
    """

    def __init__(self, source: TextSource, tokenizer: Any, place: Place | None, with_start: bool) -> None:
        self.source, self.place, self.whole = source, place or Place(), place is None
        self.encoder = TextEncoder(tokenizer)
        self.first = self.encoder.start if with_start else []
        self.count = self.first_byte = 0
        self.ahead: deque[_Part] = deque()  # parts that are not yet read to their end

    def __iter__(self) -> Iterator[Tensor]:
        skip = self.place.tokens
        for piece in self.source.pieces(self.place.start):
            ids = self.encoder.chunk(piece.text, piece.start == 0)
            if skip > len(ids):
                raise ValueError(
                    f"{self.source.path} has {len(ids):,} tokens after byte {piece.start:,}, and {skip:,} of them were "
                    "read before; is it the same text, and its notes whole?"
                )
            first = [] if self.count else self.first
            part = _Part(self.count + len(first), skip, len(ids), piece)
            if not self.ahead and not self.count:
                self.first_byte = part.byte(skip)
            self.ahead.append(part)
            ids = np.concatenate((np.array(first, np.int64), ids[skip:].astype(np.int64)))
            self.count, skip = self.count + len(ids), 0
            if len(ids):
                yield torch.from_numpy(ids)[None]
        if self.whole and not self.count:
            raise ValueError(f"{self.source.path} is empty; name a file with text in it")

    def place_after(self, count: int) -> tuple[Place, int]:
        """The place after `count` tokens, and the bytes of the file that were read for them."""
        while len(self.ahead) > 1 and self.ahead[1].before <= count:
            self.ahead.popleft()
        if not self.ahead:
            return self.place, self.first_byte
        part = self.ahead[0]
        tokens = max(0, count - part.before) + part.skipped
        return Place(part.piece.start, tokens), part.byte(tokens)


@dataclass(frozen=True)
class _Part:
    """A piece of text and its number of `tokens`; `before` it in this call, and `skipped` at its start."""

    before: int
    skipped: int
    tokens: int
    piece: TextPiece

    def byte(self, tokens: int) -> int:
        """The byte of the file after its first `tokens` tokens, by their share of the piece."""
        share = min(1.0, tokens / max(1, self.tokens))
        return self.piece.begin + round(share * (self.piece.end - self.piece.begin))
