"""Rows of fixed length from documents: packed end to end, or one document a row.

A row is a dict of int64 arrays [T]: `input_ids`, `labels` (shifted inside the model; -100 is not scored) and
`document_ids`. Where `document_ids` changes along a row, the model resets its memory.
"""

import numpy as np

from titanslab.data.shards import ShardedTokens
from titanslab.data.tokens import Tokens

IGNORED = -100
Row = dict[str, np.ndarray]


class TokenRows:
    """Rows of `length` tokens of a corpus, cut from its start, or from the start of each document.

    Args:
        tokens: the corpus.
        length: T.
        pack: a row may hold several documents; False gives each row one document or a piece of one.
        keep_tail: keep the last, shorter row of packed documents too.
        pad_id: fills shorter rows up; it is not scored.
    """

    def __init__(
        self,
        tokens: Tokens | ShardedTokens,
        length: int,
        *,
        pack: bool = True,
        keep_tail: bool = False,
        pad_id: int = 0,
    ) -> None:
        self.tokens, self.length, self.pad_id, self.pack = tokens, length, pad_id, pack
        if pack:
            self._rows = -(-len(tokens) // length) if keep_tail else len(tokens) // length
            return
        lengths = tokens.lengths()
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._rows_before = np.concatenate([[0], np.cumsum(-(-lengths // length))])  # each document
        self._rows = int(self._rows_before[-1])

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        index = range(self._rows)[index]
        start, end = index * self.length, len(self.tokens)
        if not self.pack:
            document = int(np.searchsorted(self._rows_before, index, side="right")) - 1
            start = int(self._starts[document] + (index - self._rows_before[document]) * self.length)
            end = int(self._starts[document + 1])
        ids, documents = self.tokens.piece(start, min(start + self.length, end))
        return make_row(ids, documents - documents[0], self.length, self.pad_id)


def padded(row: Row, length: int, pad_id: int = 0) -> Row:
    """The row with `length` tokens: padding on the right is `pad_id`, has no label and is a document of its own."""
    short = length - len(row["input_ids"])
    if not short:
        return row
    rest = {"input_ids": pad_id, "labels": IGNORED, "block_targets": IGNORED}
    if "document_ids" in row:
        rest["document_ids"] = row["document_ids"].max(initial=-1) + 1
    return {
        name: np.concatenate([values, np.full((short, *values.shape[1:]), rest[name], dtype=np.int64)])
        for name, values in row.items()
    }


def make_row(ids: np.ndarray, documents: np.ndarray, length: int, pad_id: int = 0) -> Row:
    """Make a row from token ids [n] and document numbers [n], n <= length.

    The first token of a document is not scored, because no token before it belongs to the document.
    """
    labels = ids.copy()
    labels[1:][documents[1:] != documents[:-1]] = IGNORED
    return padded({"input_ids": ids, "labels": labels, "document_ids": documents.astype(np.int64)}, length, pad_id)
