"""The tokens of a corpus as a stream of pieces, none of which is larger than a part of a document."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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


def pieces(
    corpus: Corpus, encoder: TextEncoder, *, processes: int = 1, after: Place = (0, 0), progress: Progress | None = None
) -> Iterator[Piece]:
    """The tokens of the documents after the place `after`, in their order; the same for any number of processes.

    `progress` is called when the first document was read, with each piece, and at the end, with the amounts in
    `corpus.unit`. Where those are not of text, as with compressed files, its note has the speed in text.
    """
    report: Progress = progress or (lambda *_: None)
    size, done, text_bytes, begun = corpus.size, 0.0, 0, time.perf_counter()
    packed = corpus.unit != "bytes" or any(is_packed(path) for path in corpus.files)
    parts = _parts(corpus, encoder, after, lambda: report(0, size))
    groups = in_groups(parts, GROUP_CHARACTERS, size=lambda part: len(part.text))
    for part, ids in _encoded(groups, encoder, processes):
        yield Piece(ids, part.text_bytes, part.end, part.done)
        done = part.done
        text_bytes += part.text_bytes
        speed = text_bytes / 1e6 / max(time.perf_counter() - begun, 1e-9)
        report(done, size, f"{speed:.1f} MB/s of text" if packed else None)
    if text_bytes:
        report(size or done, size or done)


def _encoded(groups: Iterator[list[_Part]], encoder: TextEncoder, processes: int) -> Iterator[tuple[_Part, np.ndarray]]:
    """Each part with its ids, among them the start and end token."""
    start, end = (np.array(ids, encoder.dtype) for ids in (encoder.start, encoder.end))
    for group, rows in encoded(((group, [part.text for part in group]) for group in groups), encoder, processes):
        for part, ids in zip(group, rows, strict=True):
            around = [*([start] if part.first else []), ids, *([end] if part.end is not None else [])]
            yield part, np.concatenate(around) if len(around) > 1 else ids


def _parts(corpus: Corpus, encoder: TextEncoder, after: Place, begins: Callable[[], object]) -> Iterator[_Part]:
    """The parts of the documents; `begins` is called when the first document of the corpus was read."""
    before: float | None = None
    for entry in corpus.entries(*after):
        if before is None and after == (0, 0):
            begins()
        texts, read = encoder.parts(entry.text), 0
        begin = before or (0 if after == (0, 0) else entry.done)
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
