"""Rows of fixed length from documents: packed end to end, or one document a row.

A row is a dict of three int64 arrays [T]: `input_ids`, `labels` (shifted inside the model; -100 is not
scored) and `document_ids`. Where `document_ids` changes along a row, the model resets its memory.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from titanslab.data.tokens import Tokens

IGNORED = -100
Row = dict[str, np.ndarray]


class Rows(Protocol):
    """A fixed number of rows, addressed by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class PackedRows:
    """Row i holds tokens i * T to (i + 1) * T of the corpus, of any number of documents.

    The last, shorter row is dropped, or padded with `pad_id` if `keep_tail`.
    """

    def __init__(self, tokens: Tokens, length: int, *, keep_tail: bool = False, pad_id: int = 0) -> None:
        self.tokens, self.length, self.pad_id = tokens, length, pad_id
        self.count = -(-len(tokens) // length) if keep_tail else len(tokens) // length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        start = index * self.length
        stop = min(start + self.length, len(self.tokens))
        ids = np.asarray(self.tokens.ids[start:stop]).astype(np.int64)
        documents = np.searchsorted(self.tokens.offsets, np.arange(start, stop), side="right")
        return make_row(ids, documents - documents[0], self.length, self.pad_id)


class DocumentRows:
    """Each row holds one document, or a piece of one longer than T, padded with `pad_id`, which is not scored."""

    def __init__(self, tokens: Tokens, length: int, *, pad_id: int = 0) -> None:
        self.tokens, self.length, self.pad_id = tokens, length, pad_id
        pieces = [
            np.arange(start, stop, length) for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
        ]
        self.starts = np.concatenate(pieces)
        ends = np.repeat(tokens.offsets[1:], [len(piece) for piece in pieces])
        self.stops = np.minimum(self.starts + length, ends)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Row:
        ids = np.asarray(self.tokens.ids[self.starts[index] : self.stops[index]]).astype(np.int64)
        return make_row(ids, np.zeros_like(ids), self.length, self.pad_id)


def make_row(ids: np.ndarray, documents: np.ndarray, length: int, pad_id: int = 0) -> Row:
    """Make a row from token ids [n] and document numbers [n], n <= length.

    The first token of a document is not scored, because no token before it belongs to the document. Padding is a
    document of its own.
    """
    missing = length - len(ids)
    labels = ids.copy()
    labels[1:][documents[1:] != documents[:-1]] = IGNORED
    if missing:
        ids = np.concatenate([ids, np.full(missing, pad_id, np.int64)])
        labels = np.concatenate([labels, np.full(missing, IGNORED, np.int64)])
        last = documents[-1] if len(documents) else -1
        documents = np.concatenate([documents, np.full(missing, last + 1)])
    return {"input_ids": ids, "labels": labels, "document_ids": documents.astype(np.int64)}
