"""Packed rows that are made while the corpus is read, for corpora that fit neither in memory nor on disk."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from titanslab.data.corpus import Corpus
from titanslab.data.encode import TextEncoder
from titanslab.data.packing import Row, make_row

BATCH_CHARACTERS = 200_000


class StreamedRows(IterableDataset):
    """Packed rows [T] without end. The corpus is read again after its end, and no token is dropped.

    Args:
        corpus, tokenizer: the texts and the tokenizer.
        length: T.
        buffer: number of rows from which the next one is drawn at random; 1 keeps the corpus's order.
        seed: the order depends on it alone.
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
        ids = documents = np.empty(0, np.int64)
        number = 0
        while True:
            before = number
            for texts in self.corpus.batches(BATCH_CHARACTERS):
                batch = self.encoder.documents(texts)
                numbers = np.repeat(np.arange(number, number + len(batch)), [len(document) for document in batch])
                ids = np.concatenate([ids, *batch], dtype=np.int64)
                documents = np.concatenate([documents, numbers])
                number += len(batch)
                while len(ids) >= self.length:
                    first = documents[: self.length]
                    yield make_row(ids[: self.length], first - first[0], self.length)
                    ids, documents = ids[self.length :], documents[self.length :]
            if number == before:
                raise ValueError(self.corpus.describe_empty())
