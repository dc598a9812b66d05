"""The order of the rows in a run, a pure function of the seed and the row's number.

A resumed run therefore continues with exactly the rows that would have come next in the interrupted one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from titanslab.data.packing import IGNORED, Row, Rows


class RowStream(Protocol):
    """Rows without end; `row(index)`, for any index >= 0, depends on the settings and the index alone."""

    def row(self, index: int) -> Row: ...


class ShuffledRows:
    """All rows once per epoch, in an order drawn from (seed, epoch), or in their own order without `shuffle`."""

    def __init__(self, rows: Rows, seed: int, *, shuffle: bool = True) -> None:
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self._epoch = -1
        self._order = np.arange(len(rows))

    def row(self, index: int) -> Row:
        epoch, position = divmod(index, len(self.rows))
        if self.shuffle and epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return self.rows[int(self._order[position])]


class MixedRows:
    """Rows of several streams in the given shares; the stream of a row depends on (seed, index) alone."""

    def __init__(self, streams: list[RowStream], shares: list[float], seed: int) -> None:
        if len(streams) != len(shares) or not streams or min(shares) <= 0:
            raise ValueError(f"shares must be one positive number per stream ({len(streams)}), got {shares}")
        self.streams, self.seed = streams, seed
        self.edges = np.cumsum(shares) / sum(shares)

    def row(self, index: int) -> Row:
        draw = np.random.default_rng([self.seed, index]).random()
        return self.streams[int(np.searchsorted(self.edges, draw, side="right"))].row(index)


class RunRows:
    """The first `count` rows of a stream as a dataset, for a loader that does not shuffle."""

    def __init__(self, stream: RowStream, count: int) -> None:
        self.stream, self.count = stream, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        return self.stream.row(index)


def collate(rows: list[Row], pad_id: int = 0) -> dict[str, object]:
    """Stack rows into int64 tensors [B, T], T of the longest row; shorter rows are padded on the right.

    Padding is `pad_id`, has no label and is a document of its own. Rows without `document_ids` are one document
    each, rows without `block_labels [T, N]` have no such labels; the batch has a field if any row has it.
    """
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    shapes = {name: row[name].shape[1:] for row in rows for name in row}
    return {
        name: torch.from_numpy(np.stack([_fill(row, name, longest, pad_id, shapes[name]) for row in rows]))
        for name in sorted(shapes)
    }


def _fill(row: Row, name: str, longest: int, pad_id: int, shape: tuple[int, ...]) -> np.ndarray:
    if name not in row:
        missing = IGNORED if name == "block_labels" else 0
        row = {**row, name: np.full((len(row["input_ids"]), *shape), missing, dtype=np.int64)}
    values = row[name]
    if len(values) == longest:
        return values
    rest = {"input_ids": pad_id, "labels": IGNORED, "block_labels": IGNORED, "document_ids": values[-1] + 1}[name]
    return np.concatenate([values, np.full((longest - len(values), *shape), rest, dtype=values.dtype)])
