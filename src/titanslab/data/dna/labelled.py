"""Labelled sequences of any common form: tables, FASTA, folders with a class each, and regions of a genome."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titanslab.data.compressed import COMPRESSIONS, opened
from titanslab.data.dna.alphabet import NotDNA, clean_text
from titanslab.data.dna.fasta import SUFFIXES, read_fasta
from titanslab.data.dna.regions import Reference, Region, bed_regions, table_regions

TABLES = (".tsv", ".csv", ".txt", ".tab")
SEQUENCE_NAMES = ("sequence", "seq", "dna", "dna_sequence", "sequences", "text")
LABEL_NAMES = ("label", "labels", "class", "target", "y", "category")
LABEL_WORD = re.compile(r"(?:^|[\s|;,])(?:label|class)\s*[=:]\s*([^\s|;,]+)", re.IGNORECASE)
SHORTEST = 8  # letters by which a column without a known name is taken for sequences
FORMS = "a table (.tsv, .csv), FASTA (.fa), regions (.bed), each also .gz, or a folder with a class each"


@dataclass(frozen=True)
class Columns:
    """How a labelled file is read, where its form does not say it.

    Args:
        sequence, label: names of columns; those of a file without a header, and of a BED file, are numbers from "1".
        reference: the FASTA file of the genome of which a BED file or a table of coordinates names regions.
    """

    sequence: str | None = None
    label: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences of the letters ACGTN, a label for each, and a name for each, such as a FASTA header or a row number."""

    sequences: Sequence[str]
    labels: Sequence[str]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, places: Iterable[int]) -> LabelledSequences:
        """Those at `places`, in that order."""
        kept = [int(place) for place in places]
        lists = ([column[place] for place in kept] for column in (self.sequences, self.labels, self.names))
        return LabelledSequences(*lists)

    @property
    def label_names(self) -> list[str]:
        """Each label once, in the order of numbers if all of them are, else of the alphabet."""
        found = set(self.labels)
        numbers = all(re.fullmatch(r"-?\d+", label) for label in found)
        return sorted(found, key=int) if numbers else sorted(found)


def read_labelled(
    source: str | Path | Mapping[str, Any], columns: Columns | None = None, name: str = "data"
) -> LabelledSequences:
    """Read labelled sequences.

    Args:
        source: a table with a column of sequences and one of labels; a table of coordinates or a BED file, with
            `columns.reference`; FASTA with a label in each header (`label=1`, else its last word, else its last part
            after `|`); a folder that holds for each class a folder of such files, of `.txt` files with one sequence
            each, or a FASTA file; or a dict from labels to files.
        columns: see `Columns`. name: how errors call the source.

    Raises:
        FileNotFoundError, ValueError: the source is missing, empty or damaged, a sequence is empty or holds a letter
            that is no nucleotide, there is no label, or a region is not in the genome.
        ImportError: regions need a package of the extra `dna`.
    """
    columns = columns or Columns()
    if isinstance(source, Mapping):
        entries = [(s, label, n) for label, part in source.items() for s, n in _of_class(Path(part), columns, name)]
    else:
        path = Path(source).expanduser()
        if not str(source) or not path.exists():
            raise FileNotFoundError(f"{name}: {str(source)!r} does not exist (looked for {path.absolute()})")
        entries = list(_folder(path, columns, name) if path.is_dir() else _file(path, columns, name))
    if not entries:
        raise ValueError(f"{name}: {str(source)!r} holds no sequence; give a file with sequences and labels")
    return LabelledSequences(*(list(column) for column in zip(*entries, strict=True)))


Entry = tuple[str, str, str]  # a sequence, its label, its name


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _file(path: Path, columns: Columns, name: str) -> Iterator[Entry]:
    kind, where = _kind(path), f"{name}: {str(path)!r}"
    if path.stat().st_size == 0:
        raise ValueError(f"{where} is empty; give a file with sequences and labels")
    if kind in SUFFIXES:
        yield from _labelled_fasta(path, where)
    elif kind == ".bed":
        yield from _regions(bed_regions(path, columns.label, where), columns, where)
    elif kind in TABLES:
        yield from _table(path, columns, where)
    else:
        raise ValueError(f"{where} is of an unknown kind; give {FORMS}")


def _labelled_fasta(path: Path, where: str) -> Iterator[Entry]:
    labels: set[str] = set()
    count = 0
    for title, sequence in read_fasta(path, where):
        found, words, parts = LABEL_WORD.search(title), title.split(), title.split("|")
        label = found[1] if found else words[-1] if len(words) > 1 else parts[-1] if len(parts) > 1 else ""
        if not label:
            raise ValueError(
                f"{where} has no label in the header {title[:60]!r}; write '>name label=1', or give a FASTA file for "
                "each class in one folder"
            )
        labels.add(label)
        count += 1
        yield sequence, label, words[0]
    if count > 3 and len(labels) == count:
        raise ValueError(
            f"{where}: the last word of every header is another one, so that they are no labels; write '>name label=1'"
        )


def _folder(path: Path, columns: Columns, name: str) -> Iterator[Entry]:
    """Each class of a folder: its subfolders, else its files, by their names without suffixes."""
    shown = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    classes = [p for p in shown if p.is_dir()]
    if not classes:
        classes = [p for p in shown if _kind(p) in (*SUFFIXES, ".tsv", ".csv", ".bed")]
    if len(classes) < 2:
        raise ValueError(
            f"{name}: folder {str(path)!r} must hold a folder or a file for each of at least two classes, such as "
            f"positive/ and negative/ or positive.fa and negative.fa; it holds {len(classes)}"
        )
    for part in classes:
        label = part.name if part.is_dir() else part.name.split(".")[0]
        yield from ((sequence, label, given) for sequence, given in _of_class(part, columns, name))


def _of_class(path: Path, columns: Columns, name: str) -> Iterator[tuple[str, str]]:
    """The sequences of one class and their names."""
    where = f"{name}: {str(path)!r}"
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise ValueError(f"{where} holds no file; it must hold the sequences of a class")
        for file in files:
            yield from _of_class(file, columns, name)
    elif not path.exists():
        raise FileNotFoundError(f"{where} does not exist (looked for {path.absolute()})")
    elif _kind(path) in SUFFIXES:
        yield from ((sequence, title.split()[0] if title else "") for title, sequence in read_fasta(path, where))
    elif _kind(path) == ".bed":
        regions = bed_regions(path, None, where, labelled=False)
        yield from ((sequence, given) for sequence, _, given in _regions(regions, columns, where))
    elif _kind(path) in (".csv", ".tsv"):
        header, rows = _rows(path, where)
        yield from ((s, given) for s, _, given in _regions(table_regions(header, rows, None, where), columns, where))
    else:
        with opened(path, where) as (_, stream):
            yield _sequence(stream.read().decode("utf-8-sig"), where), path.name.split(".")[0]


def _regions(regions: Iterable[Region], columns: Columns, where: str) -> Iterator[Entry]:
    if columns.reference is None:
        raise ValueError(f"{where} names regions of a genome; give the genome's FASTA file as reference")
    with Reference(Path(columns.reference)) as reference:
        for region in regions:
            yield reference.bases(region), region.label, region.name


def _table(path: Path, columns: Columns, where: str) -> Iterator[Entry]:
    header, rows = _rows(path, where)
    sequence = _column(header, columns.sequence, SEQUENCE_NAMES, where, "sequence")
    first = rows[0][1]
    if sequence is None and not (columns.reference and {"start", "end"} <= {n.lower() for n in header}):
        looks = [i for i, cell in enumerate(first) if _looks_like_dna(cell)]
        if not looks:
            listed = ", ".join(header)
            raise ValueError(f"{where} has no column of sequences; its columns: {listed}; name one (sequence_column)")
        sequence = max(looks, key=lambda i: len(first[i]))
    label = _column(header, columns.label, LABEL_NAMES, where, "label")
    if sequence is None:
        yield from _regions(table_regions(header, rows, label, where), columns, where)
        return
    if label is None:
        others = [i for i in range(len(header)) if i != sequence]
        if len(others) != 1:
            listed = ", ".join(header)
            raise ValueError(f"{where} has no label column; its columns: {listed}; name one (label_column)")
        label = others[0]
    for number, row in rows:
        place = f"{where}, row {number}"
        if not row[label].strip():
            raise ValueError(f"{place} has no label in column {header[label]!r}; give one or take the row out")
        yield _sequence(row[sequence], place), row[label].strip(), str(number)


def _rows(path: Path, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of a table's columns, and its rows with their numbers in the file, the header being row 1."""
    csv.field_size_limit(1 << 30)  # of a cell, which may hold a long sequence
    with opened(path, where, "a table") as (_, stream):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        line = text.readline()
        delimiter = next((sign for sign in "\t,;" if sign in line), "\t")
        try:
            rows = list(csv.reader(_and(line, text), delimiter=delimiter))
        except csv.Error as error:
            raise ValueError(f"{where} cannot be read as a table: {error}; is it whole?") from None
    numbered = [(number, row) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    if not numbered:
        raise ValueError(f"{where} is empty; give a file with sequences and labels")
    headed = not any(_looks_like_dna(cell) for cell in numbered[0][1])
    header = [cell.strip() for cell in numbered[0][1]] if headed else [str(i + 1) for i in range(len(numbered[0][1]))]
    rows_left = numbered[1:] if headed else numbered
    if not rows_left:
        raise ValueError(f"{where} holds a header and no row; give a file with sequences and labels")
    for number, row in rows_left:
        if len(row) != len(header):
            raise ValueError(f"{where}, row {number} has {len(row)} columns, and the first row {len(header)}")
    return header, rows_left


def _and(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _column(header: list[str], given: str | None, known: tuple[str, ...], where: str, what: str) -> int | None:
    """The place of a column by its given name, which must be there, else by a known one; None if there is none."""
    if given is not None:
        if given not in header:
            raise ValueError(f"{where} has no {what} column {given!r}; its columns: {', '.join(header)}")
        return header.index(given)
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in known if name in lower), None)


def _looks_like_dna(cell: str) -> bool:
    if len(cell.strip()) < SHORTEST:
        return False
    try:
        return bool(clean_text(cell, ""))
    except NotDNA:
        return False


def _sequence(text: str, where: str) -> str:
    sequence = clean_text(text, where)
    if not sequence:
        raise ValueError(f"{where} has an empty sequence; give one or take the row out")
    return sequence
