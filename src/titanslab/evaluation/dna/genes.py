"""Means of the values of a genome over named regions, such as genes, and the bars that show them in a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data.dna.regions import Region, bed_regions
from titanslab.evaluation.dna.bins import Overview

LEAST = 0.004  # of the picture's width: shorter regions get no name
FORWARD, REVERSE = "#555", "#999"


class Genes:
    """Means of `names` over each of `regions`, from values that arrive in the order of the genome."""

    def __init__(self, regions: Sequence[Region], names: Sequence[str]) -> None:
        self.regions, self.names = list(regions), list(names)
        self._starts, self._ends = (np.array([getattr(r, end) for r in regions]) for end in ("start", "end"))
        self._chromosomes = np.array([r.chromosome for r in regions], dtype=object)
        self._sums, self._known = (np.zeros((len(names), len(regions))) for _ in range(2))

    def add(self, chromosome: str, start: int, values: np.ndarray) -> None:
        """Add the next bases, `values [count, T]`, from base `start` of a chromosome on; NaN is no value."""
        end = start + values.shape[1]
        finite = np.isfinite(values)
        # sums of all values before each base
        sums, known = (np.pad(x, ((0, 0), (1, 0))).cumsum(1) for x in (np.where(finite, values, 0.0), finite))
        touched = (self._chromosomes == chromosome) & (self._starts < end) & (self._ends > start)
        for i in np.flatnonzero(touched):
            first, last = max(0, int(self._starts[i]) - start), min(end, int(self._ends[i])) - start
            self._sums[:, i] += sums[:, last] - sums[:, first]
            self._known[:, i] += known[:, last] - known[:, first]

    def rows(self) -> Iterator[dict[str, Any]]:
        """For each region that was read, at least in part: its place, the bases with a value, and the means."""
        for region, sums, known in zip(self.regions, self._sums.T, self._known.T, strict=True):
            if known[0]:
                means = {n: float(s / max(k, 1)) for n, s, k in zip(self.names, sums, known, strict=True)}
                place = {"chromosome": region.chromosome, "start": region.start, "end": region.end}
                yield {"name": region.label, **place, "strand": region.strand, "bases": int(known[0]), **means}

    def write(self, path: Path) -> None:
        """Write `rows` as a table separated by tabs; start is counted from 0 and end is the base after the last one."""
        columns = ["name", "chromosome", "start", "end", "strand", "bases", *self.names]
        lines = ["\t".join(columns)]
        for row in self.rows():
            cells = [row[c] for c in columns]
            lines.append("\t".join(f"{c:.6g}" if isinstance(c, float) else str(c) for c in cells))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def draw(self, axes: Any, overview: Overview, divisor: float) -> None:
        """Draw the regions as bars with their names, those of the reverse strand below; x is in `divisor` bases."""
        several = len(overview.records) > 1
        origins = {name: (before if several else first) - first for name, before, first in overview.records}
        width = overview.bases / divisor
        for row in self.rows():
            left, reverse = (row["start"] + origins[row["chromosome"]]) / divisor, row["strand"] == "-"
            length = (row["end"] - row["start"]) / divisor
            level = 0.0 if reverse else 1.0
            axes.barh(level, length, left=left, height=0.4, color=REVERSE if reverse else FORWARD)
            if length > LEAST * width:
                middle = left + length / 2
                axes.text(middle, level, row["name"], ha="center", va="center", fontsize=7, color="w", clip_on=True)
        axes.set_ylim(-0.5, 1.5)
        axes.set_yticks([0.0, 1.0], ["-", "+"])
        axes.set_title("regions of --genes, by strand", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)


def read_genes(path: Path, sizes: Mapping[str, int], where: str) -> list[Region]:
    """The regions of a BED file with names in column 4, on chromosomes of `sizes` (their numbers of bases).

    Raises:
        ValueError: the file is no BED file, or of another genome.
    """
    regions = list(bed_regions(path, None, where))
    known = [r for r in regions if r.chromosome in sizes]
    if not known:
        theirs = ", ".join(sorted({r.chromosome for r in regions})[:5]) or "none"
        raise ValueError(
            f"{where} has no region on {', '.join(list(sizes)[:5])}; the chromosomes of its regions: {theirs}"
        )
    for region in known:
        size = sizes[region.chromosome]
        if region.end > size:
            raise ValueError(
                f"{region.where} ends at {region.end:,}, and {region.chromosome} has {size:,} bases; is it of another "
                "assembly?"
            )
    return known
