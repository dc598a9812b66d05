"""The documents of a corpus, from files, folders or the hub, one at a time."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from titanslab.data.text import COMPRESSIONS, entry_texts, file_texts, find_files, local_path, text_kind

T = TypeVar("T")


class Entry(NamedTuple):
    """A document of a corpus.

    Args:
        text: never empty.
        file, row: number of its file from 0, and number of its text in the file from 1; a hub dataset is file 0.
        done: amount of the corpus that was read up to its end, in `Corpus.unit`; approximate inside a file.
    """

    text: str
    file: int
    row: int
    done: int


@dataclass(frozen=True)
class Corpus:
    """Documents of local files or of a dataset on the hub; iterating gives the text of each, in a fixed order.

    Args:
        files: local files.
        hub, subset, split, streaming: the name of a dataset on the hub, and arguments of `datasets.load_dataset`.
        column: the name of the text in JSONL, parquet and hub rows.
        text_documents: the part of a plain text file that is one document: "file", "line" or "paragraph".
        name: the name of the corpus in error messages.
    """

    files: tuple[Path, ...] = ()
    hub: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    text_documents: str = "file"
    streaming: bool = False
    name: str = field(default="data", compare=False)

    def __post_init__(self) -> None:
        if self.text_documents not in ("file", "line", "paragraph"):
            raise ValueError(f"text_documents must be 'file', 'line' or 'paragraph', got {self.text_documents!r}")

    def __iter__(self) -> Iterator[str]:
        return (entry.text for entry in self.entries())

    def entries(self, file: int = 0, row: int = 0) -> Iterator[Entry]:
        """The documents after text `row` of file number `file`; files before it are not read."""
        before = sum(path.stat().st_size for path in self.files[:file])
        for number, (size, places, texts) in enumerate(self._sources(file, row), file):
            skipped = row if number == file else 0
            for place, text in enumerate(texts, 1 if self.hub is None else skipped + 1):
                if text and place > skipped:
                    yield Entry(text, number, place, place if self.hub is not None else before + places[0])
            before += size

    def beginnings(self, characters: int) -> Iterator[str]:
        """The first texts of each file, about `characters` in all, as many of each file."""
        share = -(-characters // max(1, len(self.files)))
        for *_, texts in self._sources():
            left = share
            for text in texts:
                if text:
                    yield text[:left]
                left -= len(text)
                if left <= 0:
                    break

    def _sources(self, file: int = 0, row: int = 0) -> Iterator[tuple[int, list[int], Iterator[str]]]:
        """The size of each file, a list with the number of its bytes that were read, and its texts, some of them empty.

        Files before number `file` are left out. The hub is one source of size 0, without its first `row` texts.
        """
        if self.hub is not None:
            rows = self._dataset
            if row:
                rows = [] if hasattr(rows, "__len__") and row >= len(rows) else rows.skip(row)
            yield 0, [0], entry_texts(iter(rows), self.column, f"{self.name}: {self.hub}")
        for path in self.files[file:]:
            places, where = [0], f"{self.name}: {str(path)!r}"
            texts = file_texts(path, where, column=self.column, cut=self.text_documents, places=places)
            yield path.stat().st_size, places, texts

    @cached_property
    def _dataset(self) -> Any:
        """The dataset on the hub."""
        return _hub_dataset(self)

    @property
    def unit(self) -> str:
        """The unit of `size` and of `Entry.done`: "bytes" of files, or "documents" of a hub dataset."""
        return "bytes" if self.hub is None else "documents"

    @property
    def size(self) -> int | None:
        """The amount of the whole corpus; None for a streamed dataset whose card does not say it."""
        if self.hub is not None:
            if hasattr(self._dataset, "__len__"):
                return len(self._dataset)
            known = (self._dataset.info.splits or {}).get(self.split)
            return getattr(known, "num_examples", None) or None
        return sum(path.stat().st_size for path in self.files)

    def batches(self, characters: int) -> Iterator[list[str]]:
        """The texts in lists of about `characters` together; fast tokenizers encode those of a list in parallel."""
        return in_groups(self, characters)

    def where(self, entry: Entry) -> str:
        """The name of a document in error messages."""
        what = f"{self.hub}" if self.hub is not None else f"{str(self.files[entry.file])!r}"
        return f"{self.name}: {what}, text {entry.row},"

    def describe_empty(self) -> str:
        """The message of the error for a corpus without text, in one line."""
        what = self.hub or ", ".join(map(str, self.files[:3])) + (", ..." if len(self.files) > 3 else "")
        return f"{self.name} holds no text: {what} is empty; give a file with text"

    def fingerprint(self, files: int | None = None) -> list[Any] | None:
        """Facts on which the content depends: paths, sizes and times of the files, and how they are read.

        Those of a hub dataset are its names and the fingerprint that `datasets` gives it; None for a streamed one.

        Args:
            files: of the first so many files; None = of all.
        """
        if self.hub is not None:
            known = getattr(self._dataset, "_fingerprint", None)
            return None if self.streaming or known is None else [self.hub, self.subset, self.split, known, self.column]
        stats = [(str(path.resolve()), path.stat()) for path in self.files[:files]]
        return [[path, s.st_size, s.st_mtime_ns] for path, s in stats] + [self.column, self.text_documents]


def in_groups(items: Iterable[T], characters: int, size: Callable[[Any], int] = len) -> Iterator[list[T]]:
    """The items in lists of about `characters` together; `size` gives the characters of an item."""
    group, held = list[T](), 0
    for item in items:
        group.append(item)
        held += size(item)
        if held >= characters:
            yield group
            group, held = [], 0
    if group:
        yield group


def open_corpus(source: str | os.PathLike[str] | list[str], name: str = "data", **options: Any) -> Corpus:
    """Find the documents that `source` names: files, folders, glob patterns, a list of these, or one hub dataset.

    Args:
        source: a path, a pattern, a hub dataset, or a list of paths and patterns.
        name: the name of the source in error messages.
        options: fields of `Corpus`.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: a file is of an unknown kind, or the list is empty.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str) and _is_hub_name(source):
        return Corpus(hub=source, name=name, **options)
    sources = [source] if isinstance(source, str) else source
    if not sources:
        raise ValueError(f"{name} is an empty list; give at least one file or folder")
    files = dict.fromkeys(file for one in sources for file in find_files(os.fspath(one), name))
    return Corpus(files=tuple(files), name=name, **options)


def _is_hub_name(source: str) -> bool:
    """Whether `source` looks like owner/dataset (or a bare name) and nothing of that name is here."""
    path = Path(source)
    if local_path(source).exists() or glob.has_magic(source) or text_kind(path) or path.suffix in COMPRESSIONS:
        return False
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None


def _hub_dataset(corpus: Corpus) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        return datasets.load_dataset(corpus.hub, corpus.subset, split=corpus.split, streaming=corpus.streaming)
    except Exception as error:
        text = str(error).strip()
        reason = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
        raise ValueError(
            f"{corpus.name}: {corpus.hub!r} is neither a file or folder here (looked in {Path.cwd()}) "
            f"nor a dataset that the hub gives: {reason}"
        ) from error
