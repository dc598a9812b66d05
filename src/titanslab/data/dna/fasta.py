"""FASTA, read in pieces of a bounded size, so that a genome never has to fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

from titanslab.data.compressed import opened
from titanslab.data.dna.alphabet import SPACE, clean

SUFFIXES = (".fa", ".fasta", ".fna", ".ffn")
BLOCK = 1 << 20  # bytes read at once
LONGEST_HEADER = 1 << 16  # bytes


class FastaPiece(NamedTuple):
    """A part of a record of a FASTA file.

    Args:
        number: of the record in the file, from 1.
        title: its header without the sign `>`.
        start: number of the record's bases before this part.
        bases: letters ACGTN, not empty.
    """

    number: int
    title: str
    start: int
    bases: str

    @property
    def name(self) -> str:
        """The first word of the header, by which genome browsers and BED files know the sequence."""
        return self.title.split(maxsplit=1)[0] if self.title.strip() else ""


def fasta_pieces(stream: IO[bytes], where: str) -> Iterator[FastaPiece]:
    """The records of a FASTA stream in parts of at most `BLOCK` bases, in the file's order.

    Raises:
        ValueError: the stream is not FASTA, a record has no bases, or a letter is no nucleotide; `where` begins the
            message.
    """
    number, title, read, line_start, held, first = 0, "", 0, True, b"", True
    while block := stream.read(BLOCK):
        if first:
            first, block = False, block.removeprefix(b"\xef\xbb\xbf")
        block, at = held + block, 0
        held = b""
        while at < len(block):
            if line_start and block[at : at + 1] == b">":
                end = block.find(b"\n", at)
                if end < 0:
                    held = block[at:]
                    if len(held) > LONGEST_HEADER:
                        raise ValueError(f"{where} is not FASTA: a header has no end within {LONGEST_HEADER:,} bytes")
                    break
                _check_bases(number, title, read, where)
                number, title, read = number + 1, block[at + 1 : end].decode("utf-8", "replace").strip(), 0
                at = end + 1
                continue
            end = block.find(b"\n>", at) + 1 or len(block)
            part = block[at:end]
            at, line_start = end, block[end - 1 : end] == b"\n"
            if not number:
                if part.strip(SPACE):
                    begins = part.strip(SPACE)[:20].decode("utf-8", "replace")
                    raise ValueError(f"{where} is not FASTA: it begins with {begins!r}, not with a header '>name'")
            elif bases := clean(part, f"{where}, record {number} ({title[:40]!r})", read):
                yield FastaPiece(number, title, read, bases)
                read += len(bases)
    if held:
        number, title, read = number + 1, held[1:].decode("utf-8", "replace").strip(), 0
    _check_bases(number, title, read, where)
    if not number:
        raise ValueError(f"{where} holds no record; a FASTA file has lines '>name' and sequences after them")


def fasta_records(stream: IO[bytes], where: str) -> Iterator[tuple[str, str]]:
    """The header and the letters ACGTN of each record of a FASTA stream. Errors as `fasta_pieces`."""
    for (_, title), parts in groupby(fasta_pieces(stream, where), key=lambda piece: (piece.number, piece.title)):
        yield title, "".join(part.bases for part in parts)


def read_fasta(path: Path, where: str) -> Iterator[tuple[str, str]]:
    """The header and the letters ACGTN of each record of a FASTA file, compressed or not. Errors as `fasta_pieces`."""
    with opened(path, where, "FASTA") as (_, stream):
        yield from fasta_records(stream, where)


def _check_bases(number: int, title: str, read: int, where: str) -> None:
    if number and not read:
        raise ValueError(f"{where}, record {number} ({title[:40]!r}) has no bases; take it out or give its sequence")
