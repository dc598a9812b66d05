"""A part of a genome that a command names, such as `chr1:1-100000`, read from a FASTA file piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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

    Attributes:
        sizes: bases of each record that was read, by its name; filled while `pieces` goes on.
    """

    path: Path
    where: str
    region: GenomeRegion | None = None
    warm_up: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    def pieces(self) -> Iterator[FastaPiece]:
        """The parts of the records, or of the region.

        Raises:
            ValueError: the file is not FASTA, two records have one name, or the region is not in it.
        """
        region, self.sizes = self.region, {}
        first = 0 if region is None else max(0, region.start - self.warm_up)
        last = None if region is None else region.end
        number, others = 0, list[str]()
        with opened(self.path, self.where, "FASTA") as (_, stream):
            for piece in fasta_pieces(stream, self.where):
                if region is not None and piece.name != region.chromosome:
                    if self.sizes:
                        break
                    if piece.start == 0:
                        others.append(piece.name)
                    continue
                if piece.number != number:
                    self._check_name(piece)
                    number = piece.number
                self.sizes[piece.name] = piece.start + len(piece.bases)
                begin = max(0, first - piece.start)
                end = len(piece.bases) if last is None else max(0, min(len(piece.bases), last - piece.start))
                if begin < end:
                    yield piece._replace(start=piece.start + begin, bases=piece.bases[begin:end])
        if region is None:
            return
        if region.chromosome not in self.sizes:
            raise ValueError(
                f"{self.where} has no sequence {region.chromosome!r}; its sequences: {', '.join(others[:5])}"
            )
        size = self.sizes[region.chromosome]
        if region.start >= size or (region.end or 0) > size:
            ends = "" if region.end is None else region.end
            raise ValueError(
                f"region {region.chromosome}:{region.start + 1}-{ends} goes beyond the end: {region.chromosome} has "
                f"{size:,} bases"
            )

    def _check_name(self, piece: FastaPiece) -> None:
        if not piece.name:
            raise ValueError(f"{self.where}, record {piece.number} has no name after '>'; a track needs one")
        if piece.name in self.sizes:
            raise ValueError(f"{self.where} has two records of the name {piece.name!r}; rename one")
