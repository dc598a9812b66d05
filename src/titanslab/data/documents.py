"""Documents read in order, one beside the other: in each step, a row of the batch goes on with its own document."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from titanslab.data.packing import IGNORED, Row, make_row

BEGINS = "begins"  # field of a row: one of the next three
GOES_ON, ANEW, ALONE = 0, 1, 2  # goes on; a document begins; a row of a task, which documents pass over


class DocumentRows:
    """Endless rows, of which row `i` belongs to line `i % lines` and to its step `i // lines`.

    In each epoch the documents stand in an order drawn from (seed, epoch), are cut into pieces, and each line has an
    equal stretch of them. A line therefore begins an epoch within a document. A row is a pure function of its number.

    Args:
        tokens: the corpus, `Tokens` or `ShardedTokens`.
        length: tokens of a piece; the last one of a document is shorter.
        lines: rows of a batch, on all devices.
        seed: of the order.
        pieces: pieces after which a row begins anew within a document; None = never.
        shuffle: False keeps the order of the documents.

    Raises:
        ValueError: there are fewer pieces than lines.
    """

    def __init__(
        self, tokens: Any, length: int, lines: int, *, seed: int = 0, pieces: int | None = None, shuffle: bool = True
    ) -> None:
        self.tokens, self.length, self.lines, self.seed, self.shuffle = tokens, length, lines, seed, shuffle
        lengths = tokens.lengths()
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._counts = -(-lengths // length)  # pieces of each document
        self.pieces = pieces
        self.steps = int(self._counts.sum()) // lines  # of an epoch
        if not self.steps:
            raise ValueError(
                f"data.train holds too little data: {len(tokens):,} tokens make {int(self._counts.sum())} pieces of "
                f"data.sequence_length = {length}, and one batch needs {lines}; give more text, or lower "
                "data.sequence_length or training.batch_size"
            )
        self._epoch = -1
        self._order = self._ends = np.arange(len(lengths))

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self.steps * self.lines

    def __getitem__(self, index: int) -> Row:
        step, line = divmod(index, self.lines)
        epoch, step = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch, count = epoch, len(self._counts)
            order = np.random.default_rng([self.seed, epoch]).permutation(count) if self.shuffle else np.arange(count)
            self._order, self._ends = order, np.cumsum(self._counts[order])
        place = line * self.steps + step
        at = int(np.searchsorted(self._ends, place, side="right"))
        document = int(self._order[at])
        piece = place - int(self._ends[at] - self._counts[document])
        anew = piece == 0 or step == 0 or (self.pieces is not None and piece % self.pieces == 0)
        start = int(self._starts[document]) + piece * self.length
        ids, numbers = self.tokens.piece(start, min(start + self.length, int(self._starts[document + 1])))
        row = make_row(ids, numbers, len(ids))
        return {"input_ids": row["input_ids"], "labels": row["labels"], BEGINS: np.array(ANEW if anew else GOES_ON)}


class WithTask:
    """Rows of documents and of a task, whose steps alternate evenly in the share of the task.

    Args:
        documents: the rows of documents.
        task: the rows of the task, by number.
        share: of the task's steps, above 0 and below 1.
    """

    def __init__(self, documents: DocumentRows, task: Any, share: float) -> None:
        self.documents, self.task, self.share = documents, task, share

    def __len__(self) -> int:
        """Rows in which the documents are read once."""
        return self.documents.lines * math.ceil(self.documents.steps / (1 - self.share))

    def __getitem__(self, index: int) -> Row:
        step, line = divmod(index, self.documents.lines)
        before, after = (math.floor(n * self.share + 1e-9) for n in (step, step + 1))
        if after == before:
            return self.documents[(step - before) * self.documents.lines + line]
        row = self.task[before * self.documents.lines + line]
        values = {name: np.asarray(row[name]) for name in ("input_ids", "labels")}
        last = int(np.flatnonzero(values["labels"] != IGNORED)[-1]) + 1  # what follows is padding
        return {name: array[:last] for name, array in values.items()} | {BEGINS: np.array(ALONE)}


class OnePass(Sequence[Any]):
    """The first `count` rows of endless ones, None = one epoch; whole batches, so that every line goes on."""

    def __init__(self, rows: DocumentRows, count: int | None = None) -> None:
        self.rows = rows
        steps = rows.steps if count is None else min(rows.steps, max(1, count // rows.lines))
        self._count = steps * rows.lines

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self.rows[range(self._count)[index]]


def collate_documents(batch: Sequence[Row], pad_id: int = 0) -> dict[str, Any]:
    """Rows as int64 tensors `[B, T]`, padded on the right, with `attention_mask [B, T]` and `begins [B]`."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(arrays: list[np.ndarray], value: int) -> Any:
        rows = [torch.from_numpy(np.asarray(array, dtype=np.int64)) for array in arrays]
        return pad_sequence(rows, batch_first=True, padding_value=value)

    ids = [row["input_ids"] for row in batch]
    return {
        "input_ids": padded(ids, pad_id),
        "labels": padded([row["labels"] for row in batch], IGNORED),
        "attention_mask": padded([np.ones(len(row)) for row in ids], 0),
        BEGINS: torch.tensor([int(row[BEGINS]) for row in batch]),
    }
