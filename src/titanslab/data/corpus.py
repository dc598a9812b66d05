"""The documents of a corpus, from files, folders or the hub, one at a time."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titanslab.data.text import COMPRESSIONS, entry_texts, file_texts, find_files, local_path, text_kind


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
        return (text for _, text in self.with_places())

    def with_places(self) -> Iterator[tuple[int, str]]:
        """Each document with the number of bytes of the files that were read up to its end; 0 for the hub."""
        before = 0
        for size, places, texts in self._sources():
            for text in texts:
                if text:
                    yield before + places[0], text
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

    def _sources(self) -> Iterator[tuple[int, list[int], Iterator[str]]]:
        """The size of each file, a list with the number of its bytes that were read, and its texts, some of them empty.

        The hub is one source of size 0.
        """
        if self.hub is not None:
            yield 0, [0], entry_texts(_hub_rows(self), self.column, f"{self.name}: {self.hub}")
        for path in self.files:
            places, where = [0], f"{self.name}: {str(path)!r}"
            texts = file_texts(path, where, column=self.column, cut=self.text_documents, places=places)
            yield path.stat().st_size, places, texts

    def batches(self, characters: int) -> Iterator[tuple[int, list[str]]]:
        """The texts in lists of about `characters` together, each with the place of its end as in `with_places`.

        Fast tokenizers encode the texts of a list in parallel.
        """
        texts: list[str] = []
        size = place = 0
        for place, text in self.with_places():
            texts.append(text)
            size += len(text)
            if size >= characters:
                yield place, texts
                texts, size = [], 0
        if texts:
            yield place, texts

    def describe_empty(self) -> str:
        """The message of the error for a corpus without text, in one line."""
        what = self.hub or ", ".join(map(str, self.files[:3])) + (", ..." if len(self.files) > 3 else "")
        return f"{self.name} holds no text: {what} is empty; give a file with text"

    def fingerprint(self) -> list[Any] | None:
        """Paths, sizes and times of the files and how they are read, on which the content depends; None for the hub."""
        if self.hub is not None:
            return None
        stats = [(str(path.resolve()), path.stat()) for path in self.files]
        return [[path, s.st_size, s.st_mtime_ns] for path, s in stats] + [self.column, self.text_documents]


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


def _hub_rows(corpus: Corpus) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        return iter(datasets.load_dataset(corpus.hub, corpus.subset, split=corpus.split, streaming=corpus.streaming))
    except Exception as error:
        text = str(error).strip()
        reason = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
        raise ValueError(
            f"{corpus.name}: {corpus.hub!r} is neither a file or folder here (looked in {Path.cwd()}) "
            f"nor a dataset that the hub gives: {reason}"
        ) from error
