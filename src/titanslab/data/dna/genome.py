"""A part of a genome that a command names, such as `chr1:1-100000`, read from a FASTA file piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from titanslab.data.compressed import opened
from titanslab.data.dna.fasta import FastaPiece, fasta_pieces


@dataclass(frozen=True)
class GenomeRegion:
    """A chromosome, or its bases from `start` to before `end`, counted from 0."""

    chromosome: str
    start: int = 0
    end: int | None = None


def parse_region(text: str) -> GenomeRegion:
    """The region of a text as samtools reads it: `chr1`, `chr1:1-1000` or `chr1:500-`, first base 1, both included.

    Raises:
        ValueError: the text is none of these.
    """
    found = re.fullmatch(r"(.+?)(?::([\d,]+)(?:-([\d,]*))?)?", text.strip())
    if found is None:
        raise ValueError("region is empty; write chr1, chr1:1-100000 or chr1:500-")
    name, first, last = found.groups()
    start = int(first.replace(",", "")) if first else 1
    end = int(last.replace(",", "")) if last else None
    if start < 1 or (end is not None and end < start):
        raise ValueError(f"region {text!r} must begin at base 1 or later and end there or later, as chr1:1-100000")
    return GenomeRegion(name, start - 1, end)


@dataclass
class Genome:
    """A FASTA file, or one region of it, as pieces for a model.

    Args:
        path: the file, compressed or not. where: how errors call it.
        region: None = all records. warm_up: bases before the region that are read too.
    """

    path: Path
    where: str
    region: GenomeRegion | None = None
    warm_up: int = 0

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bases of each record by its name, or of the region's record alone; the file is read for it, quickly.

        Raises:
            ValueError: the file is not FASTA, two records have one name, or the region is not in it.
        """
        sizes, others, number = dict[str, int](), list[str](), 0
        for piece in self._records():
            if self.region is not None and piece.name != self.region.chromosome:
                if sizes:
                    break
                others += [piece.name] if piece.start == 0 else []
                continue
            if piece.number != number:
                if not piece.name:
                    raise ValueError(f"{self.where}, record {piece.number} has no name after '>'; a track needs one")
                if piece.name in sizes:
                    raise ValueError(f"{self.where} has two records of the name {piece.name!r}; rename one")
                number = piece.number
            sizes[piece.name] = piece.start + len(piece.bases)
        if self.region is not None:
            self._check_region(self.region, sizes, others)
        return sizes

    @property
    def bases(self) -> int:
        """Number of bases that `pieces` gives."""
        return sum(end - start for start, end in map(self._part, self.sizes))

    def pieces(self) -> Iterator[FastaPiece]:
        """The parts of the records, or of the region with the bases to warm up. Errors as of `sizes`."""
        left = len(self.sizes)
        for piece in self._records():
            if piece.name not in self.sizes:
                if not left:
                    break
                continue
            first, last = self._part(piece.name)
            begin, end = max(0, first - piece.start), min(len(piece.bases), last - piece.start)
            if begin < end:
                yield piece._replace(start=piece.start + begin, bases=piece.bases[begin:end])
            left -= piece.start + len(piece.bases) == self.sizes[piece.name]

    def _part(self, name: str) -> tuple[int, int]:
        """The first base of a record that is read, and the one after the last."""
        region, size = self.region, self.sizes[name]
        if region is None:
            return 0, size
        return max(0, region.start - self.warm_up), size if region.end is None else region.end

    def _records(self) -> Iterator[FastaPiece]:
        with opened(self.path, self.where, "FASTA") as (_, stream):
            yield from fasta_pieces(stream, self.where)

    def _check_region(self, region: GenomeRegion, sizes: dict[str, int], others: list[str]) -> None:
        name = region.chromosome
        if name not in sizes:
            raise ValueError(f"{self.where} has no sequence {name!r}; its sequences: {', '.join(others[:5])}")
        if region.start >= sizes[name] or (region.end or 0) > sizes[name]:
            ends = "" if region.end is None else region.end
            raise ValueError(
                f"region {name}:{region.start + 1}-{ends} goes beyond the end: {name} has {sizes[name]:,} bases"
            )
