"""The order of the rows in a run: streams without end, whose row `stream[i]` is a pure function of the seed and i.

A resumed run therefore continues with exactly the rows that would have come next in the interrupted one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from titanslab.data.packing import IGNORED, Row, padded


class ShuffledRows:
    """All rows once per epoch, in an order drawn from (seed, epoch), or in their own order without `shuffle`."""

    def __init__(self, rows: Sequence[Row], seed: int, *, shuffle: bool = True) -> None:
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self._epoch = -1
        self._order = np.arange(len(rows))

    def __getitem__(self, index: int) -> Row:
        epoch, position = divmod(index, len(self.rows))
        if self.shuffle and epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return self.rows[int(self._order[position])]


class MixedRows:
    """Rows of several streams in the given shares; the stream of a row depends on (seed, index) alone."""

    def __init__(self, streams: Sequence[Any], shares: list[float], seed: int) -> None:
        if len(streams) != len(shares) or not streams or min(shares) <= 0:
            raise ValueError(f"shares must be one positive number per stream ({len(streams)}), got {shares}")
        self.streams, self.seed = streams, seed
        self.edges = np.cumsum(shares) / sum(shares)

    def __getitem__(self, index: int) -> Row:
        draw = np.random.default_rng([self.seed, index]).random()
        return self.streams[int(np.searchsorted(self.edges, draw, side="right"))][index]


def collate(batch: Sequence[Mapping[str, Any]], pad_id: int = 0) -> dict[str, object]:
    """Stack rows, dicts of arrays or tensors, into int64 tensors [B, T], T of the longest row.

    Shorter rows are padded on the right; padding is `pad_id`, has no label and is a document of its own. Rows without
    `document_ids` are one document each, rows without `block_targets [T, N]` have no such labels; the batch has a
    field if any row has it.
    """
    import torch

    rows = [{name: np.asarray(values) for name, values in row.items()} for row in batch]
    longest = max(len(row["input_ids"]) for row in rows)
    shapes = {name: row[name].shape[1:] for row in rows for name in row}

    def whole(row: Row) -> Row:
        values = {"document_ids": 0, "block_targets": IGNORED}
        missing = [name for name in shapes if name not in row]
        full = {name: np.full((len(row["input_ids"]), *shapes[name]), values[name]) for name in missing}
        return padded({**row, **full}, longest, pad_id)

    every = [whole(row) for row in rows]
    return {name: torch.from_numpy(np.stack([row[name] for row in every])) for name in sorted(shapes)}
