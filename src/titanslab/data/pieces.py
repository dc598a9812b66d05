"""The tokens of a corpus as a stream of pieces, none of which is larger than a part of a document."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from titanslab.data.corpus import Corpus, in_groups
from titanslab.data.encode import GROUP_CHARACTERS, TextEncoder
from titanslab.data.pool import encoded
from titanslab.data.text import is_packed
from titanslab.progress import Progress

Place = tuple[int, int]  # file and row of a document, see `Entry`


class Piece(NamedTuple):
    """The tokens of a part of a document.

    Args:
        ids: [T], with the tokenizer's start token in the first part and its end token in the last.
        text_bytes: size of the part in UTF-8.
        end: the place of the document of which this is the last part; None for other parts.
        done: amount of the corpus up to here, in `Corpus.unit`.
    """

    ids: np.ndarray
    text_bytes: int
    end: Place | None
    done: float


class _Part(NamedTuple):
    """A part of a text; `first` and `end` say whether it is the first one, and of which document the last one."""

    text: str
    text_bytes: int
    first: bool
    end: Place | None
    done: float


def pieces(corpus: Corpus, encoder: TextEncoder, *, processes: int = 1, after: Place = (0, 0)) -> Iterator[Piece]:
    """The tokens of the documents after the place `after`, in their order; the same for any number of processes."""
    groups = in_groups(_parts(corpus, encoder, after), GROUP_CHARACTERS, size=lambda part: len(part.text))
    start, end = (np.array(ids, encoder.dtype) for ids in (encoder.start, encoder.end))
    for group, rows in encoded(((group, [part.text for part in group]) for group in groups), encoder, processes):
        for part, ids in zip(group, rows, strict=True):
            around = [*([start] if part.first else []), ids, *([end] if part.end is not None else [])]
            whole = np.concatenate(around) if len(around) > 1 else ids
            yield Piece(whole, part.text_bytes, part.end, part.done)


def _parts(corpus: Corpus, encoder: TextEncoder, after: Place) -> Iterator[_Part]:
    before: float | None = None if after > (0, 0) else 0
    for entry in corpus.entries(*after):
        texts, read = encoder.parts(entry.text), 0
        begin = entry.done if before is None else before
        for number, text in enumerate(texts, 1):
            read += len(text)
            try:
                size = len(text.encode("utf-8"))
            except UnicodeEncodeError:
                raise ValueError(
                    f"{corpus.where(entry)} is not Unicode text: it holds half of a surrogate pair; take it out"
                ) from None
            end = (entry.file, entry.row) if number == len(texts) else None
            done = begin + (entry.done - begin) * read / len(entry.text)
            yield _Part(text, size, number == 1, end, done)
        before = entry.done


def reported(stream: Iterator[Piece], corpus: Corpus, report: Progress, *, fresh: bool = True) -> Iterator[Piece]:
    """The pieces of `stream`; each is reported when it comes. `fresh` says whether they are the first of the corpus.

    Where the amount done is not that of text, as with compressed files, the note has the speed in text.
    """
    size, done, text_bytes, begun = corpus.size, 0.0, 0, time.perf_counter()
    packed = corpus.unit != "bytes" or any(is_packed(path) for path in corpus.files)
    if fresh:
        report(0, size)
    for piece in stream:
        done = piece.done
        text_bytes += piece.text_bytes
        speed = text_bytes / 1e6 / max(time.perf_counter() - begun, 1e-9)
        report(done, size, f"{speed:.1f} MB/s of text" if packed else None)
        yield piece
    report(size or done, size or done)
