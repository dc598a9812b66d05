"""Values along a genome in bins, as lines of a bedGraph file; means over the whole genome of a bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Bin(NamedTuple):
    """Bases `start` to before `end` of a record, counted from 0, and the means of their values, NaN without any."""

    name: str
    start: int
    end: int
    means: np.ndarray


class Binner:
    """Means of runs of `size` bases, whose edges are multiples of `size`; the first and last may be shorter.

    Args:
        size: bases of a bin. count: number of values of a base.
    """

    def __init__(self, size: int, count: int) -> None:
        if size < 1:
            raise ValueError(f"bin must be 1 or more bases, got {size}")
        self.size, self.count = size, count
        self._name, self._start, self._end = "", 0, 0
        self._sums, self._known = np.zeros(count), np.zeros(count)

    def add(self, name: str, start: int, values: np.ndarray) -> Iterator[Bin]:
        """The bins that end with the next bases of a record; `values [count, T]` begin at base `start`."""
        if name != self._name or start != self._end:
            yield from self.rest()
            self._name, self._start, self._end = name, start, start
        begin, end = start, start + values.shape[1]
        edges = np.arange((begin // self.size + 1) * self.size, end + 1, self.size)
        stops = edges if len(edges) and edges[-1] == end else np.append(edges, end)
        known = np.isfinite(values)
        starts = np.concatenate([[0], stops[:-1] - begin]).astype(np.int64)
        sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
        counts = np.add.reduceat(known.astype(np.float64), starts, axis=1)
        for i, stop in enumerate(stops):
            self._sums += sums[:, i]
            self._known += counts[:, i]
            self._end = int(stop)
            if stop % self.size == 0:
                yield from self.rest()

    def rest(self) -> Iterator[Bin]:
        """The bin that has not ended, if it holds a base."""
        if self._end > self._start:
            means = np.where(self._known > 0, self._sums / np.maximum(self._known, 1), np.nan)
            yield Bin(self._name, self._start, self._end, means)
        self._start = self._end
        self._sums, self._known = np.zeros(self.count), np.zeros(self.count)


class Overview:
    """Means along everything that was read in at most `columns` equal parts; two neighbours become one when it is full.

    Args:
        columns: an even number. count: number of values of a base.
    """

    def __init__(self, count: int, columns: int = 2048) -> None:
        self.columns, self.stride, self.bases = columns, 1, 0
        self.sums, self.known = np.zeros((count, columns)), np.zeros((count, columns))
        self.records: list[tuple[str, int, int]] = []  # name, number of bases before, place of its first base

    def add(self, name: str, start: int, values: np.ndarray) -> None:
        """Add the next bases, `values [count, T]`, from base `start` of a record on."""
        if not self.records or self.records[-1][0] != name:
            self.records.append((name, self.bases, start))
        while self.bases + values.shape[1] > self.columns * self.stride:
            for table in (self.sums, self.known):
                halves = table.reshape(len(table), -1, 2).sum(2)
                table[:] = 0.0
                table[:, : self.columns // 2] = halves
            self.stride *= 2
        places = (self.bases + np.arange(values.shape[1])) // self.stride
        for row, (sums, known) in enumerate(zip(self.sums, self.known, strict=True)):
            finite = np.isfinite(values[row])
            sums += np.bincount(places, np.where(finite, values[row], 0.0), self.columns)
            known += np.bincount(places, finite, self.columns)
        self.bases += values.shape[1]

    def means(self, least: int = 1) -> tuple[np.ndarray, np.ndarray, int]:
        """Means of parts of at least `least` bases, as far as whole parts of the overview go into one.

        Returns:
            Places of the middles of the parts in bases, the means `[count, parts]`, NaN without a value, and the bases
            of a part.
        """
        each = max(1, least // self.stride)
        starts = np.arange(0, math.ceil(self.bases / self.stride), each)
        sums, known = (np.add.reduceat(table, starts, axis=1) for table in (self.sums, self.known))
        means = np.where(known > 0, sums / np.maximum(known, 1), np.nan)
        return (starts + each / 2) * self.stride, means, each * self.stride


class Positions:
    """Mean bits by the number of bases before a base in its record: 0, 1, 2-3, 4-7, and so on."""

    def __init__(self) -> None:
        self.sums, self.counts = np.zeros(64), np.zeros(64, np.int64)

    def add(self, before: int, bits: np.ndarray) -> None:
        """Add bases `[T]` of which the first has `before` bases before it."""
        buckets = np.frexp((before + np.arange(len(bits))).astype(np.float64))[1]  # 0 -> 0, 1 -> 1, 2-3 -> 2, ...
        known = np.isfinite(bits)
        self.sums += np.bincount(buckets[known], bits[known], 64)
        self.counts += np.bincount(buckets[known], minlength=64)

    def rows(self) -> list[dict[str, float]]:
        """The buckets with a base: `first` and `last` number of bases before, `bases`, `bits`."""
        return [
            {
                "first": 0 if i == 0 else 2 ** (i - 1),
                "last": max(0, 2**i - 1),
                "bases": int(self.counts[i]),
                "bits": float(self.sums[i] / self.counts[i]),
            }
            for i in range(64)
            if self.counts[i]
        ]
