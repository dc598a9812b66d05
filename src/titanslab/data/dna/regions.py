"""Regions of a genome: read from BED files and tables of coordinates, and their bases from a FASTA file by pyfaidx."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from titanslab.data.compressed import opened
from titanslab.data.dna.alphabet import clean_text, reverse_complement

CHROMOSOMES = ("chrom", "region", "chr", "chromosome", "seqname")
COMMENTS = ("#", "track", "browser")


class Region(NamedTuple):
    """A part of a chromosome, from base `start` to before base `end`, counted from 0, as in a BED file.

    Args:
        strand: "-" for the reverse complement.
        where: how errors call it.
    """

    chromosome: str
    start: int
    end: int
    strand: str
    label: str
    where: str

    @property
    def name(self) -> str:
        return f"{self.chromosome}:{self.start}-{self.end}"


class Reference:
    """A genome in a FASTA file, of which regions are read through an index, by pyfaidx.

    The index is the file with `.fai` after its name, made where it is missing, or a temporary one where its folder is
    read-only.

    Raises:
        FileNotFoundError, ValueError: the file is missing or cannot be indexed. ImportError: pyfaidx is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self._held = ExitStack()
        self._fasta: Any = None

    def __enter__(self) -> Reference:
        try:
            import pyfaidx
        except ImportError:
            raise ImportError("regions of a genome need a package: pip install 'titans-lab[dna]' (pyfaidx)") from None
        if not self.path.is_file():
            raise FileNotFoundError(f"reference {str(self.path)!r} does not exist (looked for {self.path.absolute()})")
        index = Path(f"{self.path}.fai")
        try:
            if not index.exists():
                index.touch()
                index.unlink()
        except OSError:
            index = Path(self._held.enter_context(tempfile.TemporaryDirectory())) / "index.fai"
        try:
            self._fasta = self._held.enter_context(pyfaidx.Fasta(str(self.path), indexname=str(index), as_raw=True))
        except Exception as error:  # of pyfaidx, of the package for bgzip, or of the system
            self._held.close()
            fix = "; unpack it: gunzip" if self.path.suffix.lower() in (".gz", ".bgz") else ""
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"reference {str(self.path)!r} cannot be indexed: {reason}{fix}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def bases(self, region: Region) -> str:
        """The letters ACGTN of a region; ValueError where the genome does not have it."""
        if region.chromosome not in self._fasta:
            some = ", ".join(list(self._fasta.keys())[:5])
            raise ValueError(
                f"{region.where}: {str(self.path)!r} has no sequence {region.chromosome!r}; its sequences: {some}"
            )
        record = self._fasta[region.chromosome]
        if region.end > len(record):
            raise ValueError(
                f"{region.where} ends at {region.end:,}, and {region.chromosome} has {len(record):,} bases; is it of "
                "another assembly?"
            )
        letters = clean_text(str(record[region.start : region.end]), f"{str(self.path)!r}, {region.name}")
        return reverse_complement(letters) if region.strand == "-" else letters


def bed_regions(path: Path, label: str | None, where: str, labelled: bool = True) -> Iterator[Region]:
    """The regions of a BED file, with the label in column `label`, a number from "1"; default the fourth, its name.

    Raises ValueError for a row that is not of the format.
    """
    if label is not None and not (label.isdecimal() and int(label) > 3):
        raise ValueError(f"{where}: the label column of a BED file is a number of at least 4, got {label!r}")
    column = int(label or 4)
    with opened(path, where, "BED") as (_, stream):
        for number, line in enumerate(stream, 1):
            text = line.decode("utf-8").strip()
            if not text or text.startswith(COMMENTS):
                continue
            cells, place = text.split("\t") if "\t" in text else text.split(), f"{where}, row {number}"
            if len(cells) < 3 or (labelled and len(cells) < column):
                raise ValueError(
                    f"{place} has {len(cells)} columns; a BED file has chromosome, start and end, and the label of a "
                    f"region in column {column}"
                )
            strand = cells[5] if len(cells) > 5 else "+"
            yield _region(cells[:3], strand, cells[column - 1] if labelled else "", place)


def table_regions(
    header: list[str], rows: Iterable[tuple[int, list[str]]], label: int | None, where: str
) -> Iterator[Region]:
    """The regions of a table of coordinates, which are those of a BED file, as the lists of GenomicBenchmarks are.

    Raises ValueError for a table without columns of chromosome, start and end.
    """
    lower = [name.lower() for name in header]
    chromosome = next((lower.index(name) for name in CHROMOSOMES if name in lower), None)
    if chromosome is None or "start" not in lower or "end" not in lower:
        raise ValueError(
            f"{where} is no table of regions; it needs columns {' or '.join(CHROMOSOMES)}, start and end, and its "
            f"columns are {', '.join(header)}"
        )
    places = [chromosome, lower.index("start"), lower.index("end")]
    strand = lower.index("strand") if "strand" in lower else None
    for number, row in rows:
        sign = row[strand] if strand is not None else "+"
        name = "" if label is None else row[label]
        yield _region([row[i] for i in places], sign, name, f"{where}, row {number}")


def _region(cells: list[str], strand: str, label: str, where: str) -> Region:
    try:
        start, end = int(cells[1]), int(cells[2])
    except ValueError:
        raise ValueError(f"{where}: start and end must be whole numbers, got {cells[1]!r} and {cells[2]!r}") from None
    if not 0 <= start < end:
        raise ValueError(f"{where}: start must be at least 0 and below end, got {start} and {end}")
    return Region(cells[0], start, end, strand.strip(), label.strip(), where)
