"""Packed rows made while the corpus is read, for corpora that do not fit in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import IterableDataset

from titanslab.data.corpus import Corpus
from titanslab.data.encode import TextEncoder
from titanslab.data.packing import Row, make_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DOCUMENTS = 32


class StreamedRows(IterableDataset):
    """Endless packed rows [T] in the corpus's order, drawn from a buffer of `buffer` rows (1: not shuffled).

    Reads the corpus again when it ends; tokens are carried over, so no text is lost. The order depends on
    the seed alone.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int, *, buffer: int, seed: int
    ) -> None:
        self.corpus, self.length, self.buffer, self.seed = corpus, length, buffer, seed
        self.encoder = TextEncoder(tokenizer)

    def __iter__(self) -> Iterator[Row]:
        rng = np.random.default_rng(self.seed)
        held: list[Row] = []
        for row in self._packed():
            if len(held) < self.buffer:
                held.append(row)
                continue
            place = int(rng.integers(len(held)))
            yield held[place]
            held[place] = row

    def _packed(self) -> Iterator[Row]:
        ids = np.empty(0, np.int64)
        documents = np.empty(0, np.int64)
        number = 0
        for batch in self._documents():
            for document in batch:
                ids = np.concatenate([ids, document.astype(np.int64)])
                documents = np.concatenate([documents, np.full(len(document), number)])
                number += 1
            while len(ids) >= self.length:
                first = documents[: self.length]
                yield make_row(ids[: self.length], first - first[0], self.length)
                ids, documents = ids[self.length :], documents[self.length :]

    def _documents(self) -> Iterator[list[np.ndarray]]:
        while True:
            texts: list[str] = []
            seen = 0
            for text in self.corpus:
                texts.append(text)
                seen += 1
                if len(texts) == BATCH_DOCUMENTS:
                    yield self.encoder.documents(texts)
                    texts = []
            if not seen:
                raise ValueError(self.corpus.describe_empty())
            if texts:
                yield self.encoder.documents(texts)
