"""The one reader of texts: files of running text, JSON, parquet or FASTA, plain or compressed, whole or in pieces."""

import glob
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from titanslab.data.compressed import COMPRESSIONS, head, not_utf8, opened
from titanslab.data.dna import fasta

_SUFFIXES = {
    "text": (".txt", ".text", ".md"),
    "json": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
    "FASTA": fasta.SUFFIXES,
}
KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TOKENS = "titans-tokens.json"  # in a folder of tokens, which holds no texts
PIECE_BYTES = 1 << 16
PARQUET_ROWS = 1024  # rows decoded at once; a row may hold a whole book


def text_kind(path: Path) -> str | None:
    """The kind of a file by its name, compressed or not: "text", "json", "parquet" or "FASTA"; None for other names."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def is_packed(path: Path) -> bool:
    """Whether a file, by its name, has another size than its text: compressed or parquet."""
    return path.suffix.lower() in COMPRESSIONS or text_kind(path) == "parquet"


def local_path(source: str) -> Path:
    """The path `source`, with `~` for a home where nothing of that very name is here."""
    path = Path(source)
    try:
        return path if path.exists() else path.expanduser()
    except RuntimeError:  # no such user
        return path


def find_files(source: str, name: str) -> list[Path]:
    """The files of texts that `source` names: one file, the files of a folder and its subfolders, or a pattern.

    Files come in the order of their names; hidden ones and those of other kinds are left out.

    Raises:
        FileNotFoundError, ValueError: nothing is there, or nothing of a known kind; `name` is how the message
            calls the source.
    """
    if not str(source):
        raise ValueError(f"{name} is an empty name; give a file, a folder or a pattern, '.' for the folder here")
    path = local_path(source)
    if path.is_file():
        if text_kind(path) is None:
            raise ValueError(
                f"{name}: {source!r} is of an unknown kind; name it .txt, .md, .jsonl, .json, .parquet or .fa, "
                f"with {', '.join(COMPRESSIONS)} after it where compressed"
            )
        return [path]
    if path.is_dir():
        if (path / TOKENS).is_file():
            raise ValueError(f"{name}: {source!r} holds tokens that titans tokenize made, and texts are needed here")
        shown = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        inside = sorted(shown)
        missing = f"folder {source!r} holds no .txt, .md, .jsonl, .json, .parquet or .fa file"
    elif glob.has_magic(source):
        inside = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        missing = f"no text, JSONL, parquet or FASTA file matches the pattern {source!r}"
    elif path.exists():
        raise ValueError(f"{name}: {source!r} is a device or a pipe; give a file, or write its text to one")
    else:
        raise FileNotFoundError(f"{name}: {source!r} does not exist (looked for {path.absolute()})")
    found = [p for p in inside if p.is_file() and text_kind(p)]
    if not found:
        raise FileNotFoundError(f"{name}: {missing}")
    return found


def file_texts(
    path: Path, where: str, *, column: str = "text", cut: str = "file", places: list[int] | None = None
) -> Iterator[str]:
    """The texts of one file, in its order; a file without a known suffix is running text.

    Args:
        path: running text in UTF-8; JSON, an entry a line or one list or entry in the file; parquet; or FASTA, whose
            texts are the letters ACGTN of its records. It is taken for compressed if its first bytes or its name say
            so. Line ends become `\\n`, and a byte order mark is left out. An empty file has no texts.
        where: how errors call the file.
        column: the field of a JSON entry or the column of a parquet file that holds the text.
        cut: the part of a file of running text that is one text: "file", "line" or "paragraph".
        places: at each text its only element becomes the number of bytes of the file that were read so far.

    Raises:
        ValueError: the file is not UTF-8, is damaged or cut off, or an entry has no text.
        ImportError: the file is compressed with zstd and no package for that is installed.
    """
    kind, count, size = text_kind(path) or "text", 1, 0
    if path.is_file() and path.stat().st_size == 0:
        return
    with opened(path, where, kind) as (raw, stream):
        if kind == "parquet":
            count, rows = _parquet_rows(raw if stream is raw else io.BytesIO(stream.read()), column, where)
            texts, size = entry_texts(rows, column, where), path.stat().st_size
        elif kind == "FASTA":
            texts = (bases for _, bases in fasta.fasta_records(stream, where))
        else:
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
            if kind == "json":
                texts = entry_texts(_json_entries(lines), column, where)
            else:
                texts = _running_texts(lines, cut)
        for number, text in enumerate(texts, 1):
            if places is not None:  # parquet is read ahead, so that the place in the file says little there
                places[:] = [number * size // count if kind == "parquet" else raw.tell()]
            yield text


def _running_texts(lines: io.TextIOWrapper, cut: str) -> Iterator[str]:
    if cut == "file":
        yield lines.read()
    elif cut == "line":
        yield from (line.removesuffix("\n") for line in lines)
    else:
        yield from _paragraphs(lines)


def entry_texts(entries: Iterable[Any], column: str, where: str) -> Iterator[str]:
    """The text in `column` of each entry, an object or the text itself; ValueError naming the entry without one."""
    for number, entry in enumerate(entries, 1):
        text = entry.get(column) if isinstance(entry, dict) else entry
        if isinstance(text, str):  # JSON can name half a character, which no tokenizer takes
            yield text.encode("utf-8", "replace").decode("utf-8")
            continue
        found = f"{type(text).__name__} in column {column!r}, not text; clean the data or name another column"
        if isinstance(entry, dict) and column not in entry:
            columns = ", ".join(sorted(map(str, entry))) or "none"
            found = f"no column {column!r}; its columns: {columns} (a corpus may name another as data.text_column)"
        raise ValueError(f"{where}, entry {number} has {found}")


def iter_texts(path: str | os.PathLike[str]) -> Iterator[str]:
    """The texts of a file or of a folder's files that are more than white space, in the order of the names.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file holds no text, or cannot be read as `file_texts` reads it.
    """
    there = Path(path).exists() and not Path(path).is_dir()
    for file in [Path(path)] if there else find_files(str(path), "path"):
        texts = (text for text in file_texts(file, f"path {file}") if text.strip())
        if (first := next(texts, None)) is None:
            raise ValueError(f"path {file} holds no text; name a file with text in it")
        yield first
        yield from texts


def read_words(path: str | os.PathLike[str]) -> list[str]:
    """A word list, one word a line, in its own order without repeats."""
    where = Path(path)
    if not where.is_file():
        raise FileNotFoundError(f"path {where} does not exist; name a word list, one word a line")
    lines = whole_text(where, f"path {where}").splitlines()
    words = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not words:
        raise ValueError(f"path {where} holds no word; it must be a word list, one word a line")
    return words


def whole_text(path: Path, where: str) -> str:
    """A file of running text as one string, of whatever name; errors as those of `file_texts`."""
    with opened(path, where) as (_, stream):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        return text.read()


def file_bytes(path: Path, where: str, kind: str = "text") -> bytes:
    """The decompressed bytes of a file; errors as those of `file_texts`, except that of an encoding by 8 bits."""
    with opened(path, where, kind) as (_, stream):
        return stream.read()


@dataclass(frozen=True)
class TextPiece:
    """A part of a text that ends before a space.

    Args:
        text: the part, whose line ends are `\\n`.
        start: place of its first byte in the decompressed text.
        begin, end: places of its first byte and of the byte after its last in the file; those in a compressed file
            are approximate.
    """

    text: str
    start: int
    begin: int
    end: int


class TextSource:
    """A file of running text in UTF-8, read a piece at a time; a piece depends on its start alone.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is not UTF-8, damaged or cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name a file of text")
        if not self.path.exists():
            raise FileNotFoundError(f"text {str(self.path)!r} does not exist (looked for {self.path.absolute()})")
        if not self.path.is_file():
            raise ValueError(f"{self.path} is a pipe or a device; a text whose reading can be resumed is a file")
        self.size = self.path.stat().st_size

    def pieces(self, start: int = 0) -> Iterator[TextPiece]:
        """The pieces from byte `start` of the decompressed text on, counted after a byte order mark."""
        with opened(self.path, str(self.path)) as (raw, stream):
            mark = len(BYTE_ORDER_MARK) if head(stream).startswith(BYTE_ORDER_MARK) else 0
            begin = start + mark
            if begin and (stream.seek(begin) < begin or (stream is raw and begin > self.size)):
                raise ValueError(f"{self.path} is shorter than the part that was read before; is it the same text?")
            buffer = b""
            place = raw.tell() if start else 0
            while buffer := buffer + stream.read(PIECE_BYTES - len(buffer)):
                cut = _cut(buffer) if len(buffer) == PIECE_BYTES else len(buffer)
                begin, place = place, start + mark + cut if stream is raw else raw.tell()
                try:
                    text = buffer[:cut].decode("utf-8")
                except UnicodeDecodeError as error:
                    raise not_utf8(error, str(self.path), start + mark + error.start) from None
                yield TextPiece(text.replace("\r\n", "\n").replace("\r", "\n"), start, begin, place)
                start += cut
                buffer = buffer[cut:]


def _cut(buffer: bytes) -> int:
    """The end of a piece: before a space, which tokenizers take for the start of a word, or else a line end."""
    for separator in (b" ", b"\n"):
        place = buffer.rfind(separator)
        if buffer[place - 1 : place] == b"\r":  # a line end of two bytes stays whole
            place -= 1
        if place > 0:
            return place
    place = len(buffer)
    while place > len(buffer) - 4 and buffer[place - 1] & 0xC0 == 0x80:
        place -= 1
    return place - 1  # the last character may lack bytes


def _json_entries(lines: Iterator[str]) -> Iterator[Any]:
    """The entries of a JSON text: one a line, else the elements of its list, else the whole."""
    first = next((line for line in lines if line.strip()), "")
    if not first:
        return
    try:
        entry = json.loads(first)
    except json.JSONDecodeError:
        entry = None
    if isinstance(entry, dict | str):
        yield entry
        yield from (json.loads(line) for line in lines if line.strip())
    else:
        whole = json.loads(first + "".join(lines))
        yield from whole if isinstance(whole, list) else [whole]


def _parquet_rows(file: IO[bytes], column: str, where: str) -> tuple[int, Iterator[dict[str, Any]]]:
    """The number of rows and the rows."""
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    names = table.schema_arrow.names
    if names.count(column) > 1:
        raise ValueError(f"{where} has {names.count(column)} columns named {column!r}; rename all but one")
    columns = [column] if column in names else None  # an error lists all of them
    batches = table.iter_batches(PARQUET_ROWS, columns=columns)
    return table.metadata.num_rows, (row for batch in batches for row in batch.to_pylist())


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """The parts of a text between two line ends, without those."""
    part: list[str] = []
    for line in lines:
        if line == "\n" and part:
            yield "".join(part)[:-1]
            part = []
        else:
            part.append(line)
    yield "".join(part)
