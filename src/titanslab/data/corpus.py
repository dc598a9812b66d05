"""Documents from files, folders or the hub, read through `datasets` one at a time."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
}
FORMATS |= {".parquet": "parquet"}
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
SAMPLE_BY = {"file": "document", "line": "line", "paragraph": "paragraph"}


@dataclass(frozen=True)
class Corpus:
    """A collection of documents: local files, or a dataset on the hub, never both.

    Iterating gives the text of each document in a fixed order. `column` names the text of JSONL, parquet
    and hub rows; plain text files are cut into documents by `text_documents`: "file", "line" or "paragraph".
    """

    files: tuple[Path, ...] = ()
    hub: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    text_documents: str = "file"
    streaming: bool = False
    name: str = field(default="data", compare=False)

    def __iter__(self) -> Iterator[str]:
        for _, text in self.with_file_index():
            yield text

    def with_file_index(self) -> Iterator[tuple[int, str]]:
        """As iterating, with the index of the file that each document came from (0 for the hub)."""
        if self.hub is not None:
            for text in _texts(_hub_rows(self), self.column, f"{self.name}: {self.hub}"):
                yield 0, text
        for index, path in enumerate(self.files):
            for text in _file_texts(path, self):
                yield index, text

    def describe_empty(self) -> str:
        """The one-line error for a corpus that turned out to hold no text."""
        what = self.hub or ", ".join(map(str, self.files[:3])) + (", ..." if len(self.files) > 3 else "")
        return f"{self.name} holds no text: {what} is empty; give a file with text"

    def nbytes(self) -> list[int]:
        """The size of each file on disk; empty for the hub, whose size is not known."""
        return [path.stat().st_size for path in self.files]

    def fingerprint(self) -> list[Any] | None:
        """What the content depends on: paths, sizes and times of the files; None for the hub."""
        if self.hub is not None:
            return None
        stats = [(str(path.resolve()), path.stat()) for path in self.files]
        return [[path, s.st_size, s.st_mtime_ns] for path, s in stats] + [self.column, self.text_documents]


def open_corpus(source: str | list[str], name: str = "data", **options: Any) -> Corpus:
    """Find what `source` names: files, folders, glob patterns, a list of these, or one dataset on the hub.

    `options` are fields of Corpus; `name` is how errors call the source. Raises FileNotFoundError for what
    is not there and ValueError for what cannot be read as text.
    """
    if isinstance(source, str) and _is_hub_name(source):
        return Corpus(hub=source, name=name, **options)
    sources = [source] if isinstance(source, str) else source
    if not sources:
        raise ValueError(f"{name} is an empty list; give at least one file or folder")
    files: list[Path] = []
    for one in sources:
        files += _find_files(one, name)
    return Corpus(files=tuple(dict.fromkeys(files)), name=name, **options)


def _is_hub_name(source: str) -> bool:
    """Whether `source` looks like owner/dataset (or a bare name) and nothing of that name is here."""
    if Path(source).expanduser().exists() or glob.has_magic(source):
        return False
    if _format(Path(source)) is not None or Path(source).suffix in COMPRESSIONS:
        return False
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None


def _find_files(source: str, name: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        if _format(path) is None:
            raise ValueError(
                f"{name}: {source!r} is of an unknown kind; name it .txt, .md, .jsonl, .json or .parquet, "
                f"with {', '.join(COMPRESSIONS)} after it where compressed"
            )
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _format(p) and not _hidden(p.relative_to(path)))
        if not found:
            raise FileNotFoundError(f"{name}: folder {source!r} holds no .txt, .md, .jsonl, .json or .parquet file")
        return found
    if glob.has_magic(source):
        matches = sorted(glob.glob(os.path.expanduser(source), recursive=True))
        found = [Path(match) for match in matches if Path(match).is_file() and _format(Path(match))]
        if not found:
            raise FileNotFoundError(f"{name}: no text, JSONL or parquet file matches the pattern {source!r}")
        return found
    raise FileNotFoundError(f"{name}: {source!r} does not exist (looked for {path.absolute()})")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _format(path: Path) -> str | None:
    """The `datasets` builder for a file name, compressed or not; None when the name does not tell."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _file_texts(path: Path, corpus: Corpus) -> Iterator[str]:
    where = f"{corpus.name}: {str(path)!r}"
    kind = _format(path) or "text"
    if path.stat().st_size == 0:
        return  # `describe_empty` is for when no file has text
    options: dict[str, Any] = {}
    if kind == "text":
        options["sample_by"] = SAMPLE_BY[corpus.text_documents]
    column = "text" if kind == "text" else corpus.column
    try:
        pattern = glob.escape(str(path.absolute()))
        with _no_counting():
            rows = _datasets().load_dataset(
                kind, data_files={"train": [pattern]}, split="train", streaming=True, **options
            )
        yield from _texts(iter(rows), column, where)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not text in UTF-8 (byte {error.start}: {error.reason}); convert it") from error
    except StopIteration:  # how `datasets` says that a JSON file holds nothing
        return
    except (_WrongRow, PermissionError):
        raise
    except ImportError as error:
        raise ImportError(f"{where} cannot be read: {error}; for .zst, pip install zstandard") from error
    except Exception as error:  # pyarrow, lzma, zlib, json and datasets each raise their own
        raise ValueError(f"{where} cannot be read as {kind}: {_first_line(error)}; is it whole?") from error


class _WrongRow(ValueError):
    """A row without the text that was asked for; already says where."""


def _texts(rows: Iterator[dict[str, Any]], column: str, where: str) -> Iterator[str]:
    for number, row in enumerate(rows):
        text = row.get(column)
        if not isinstance(text, str):
            if column not in row:
                columns = ", ".join(sorted(map(str, row))) or "none"
                raise _WrongRow(f"{where} has no column {column!r}; its columns: {columns} (set data.text_column)")
            raise _WrongRow(
                f"{where}: row {number} has {type(text).__name__} in column {column!r}, not text; clean "
                "the data or "
                "choose another data.text_column"
            )
        if text:
            yield text


def _hub_rows(corpus: Corpus) -> Iterator[dict[str, Any]]:
    try:
        dataset = _datasets().load_dataset(corpus.hub, corpus.subset, split=corpus.split, streaming=corpus.streaming)
        return iter(dataset)
    except Exception as error:
        raise ValueError(
            f"{corpus.name}: {corpus.hub!r} is neither a file or folder here (looked in {Path.cwd()}) "
            f"nor a dataset that the hub gives: {_first_line(error)}"
        ) from error


def _datasets() -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


@contextmanager
def _no_counting() -> Iterator[None]:
    """Without this, `datasets` asks a server to count each reading of a local file, seconds when offline."""
    config = _datasets().config
    before = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
