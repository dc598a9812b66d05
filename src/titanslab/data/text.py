"""Running text and word lists from files."""

import gzip
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

_SUFFIXES = (".txt", ".md", ".json", ".jsonl")


def iter_texts(path: str | os.PathLike[str]) -> Iterator[str]:
    """The texts in a file or in a folder of files, in the order of their names.

    Args:
        path: `.txt` (one text), `.json` (an object with `text`, or a list of them), `.jsonl` (one object with
            `text` a line), each also as `.gz` or `.xz`; or a folder of such files.
    """
    where = Path(path)
    if where.is_dir():
        files = sorted(f for f in where.iterdir() if f.is_file() and _bare_suffix(f) in _SUFFIXES)
        if not files:
            raise ValueError(f"path {where} is a folder without {', '.join(_SUFFIXES)} files; name a file of text")
        for file in files:
            yield from iter_texts(file)
        return
    if not where.exists():
        raise FileNotFoundError(f"path {where} does not exist; name a text, json or jsonl file, or a folder of them")
    found = False
    for text in _iter_file(where):
        if text.strip():
            found = True
            yield text
    if not found:
        raise ValueError(f"path {where} holds no text; name a file with text in it")


def read_words(path: str | os.PathLike[str]) -> list[str]:
    """A word list, one word a line, in its own order without repeats."""
    where = Path(path)
    if not where.is_file():
        raise FileNotFoundError(f"path {where} does not exist; name a word list, one word a line")
    words = list(dict.fromkeys(line.strip() for line in utf8_lines(where)))
    words = [word for word in words if word]
    if not words:
        raise ValueError(f"path {where} holds no word; it must be a word list, one word a line")
    return words


def utf8_lines(file: Path) -> list[str]:
    """The lines of a text; ValueError naming the file where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"path {file} is not text in UTF-8 (byte {error.start}: {error.reason}); convert it") from None


def _bare_suffix(file: Path) -> str:
    return (Path(file.stem).suffix if file.suffix in (".gz", ".xz") else file.suffix).lower()


def _open(file: Path) -> IO[str]:
    if file.suffix == ".xz":
        return cast(IO[str], lzma.open(file, "rt", encoding="utf-8", errors="replace"))
    if file.suffix == ".gz":
        return cast(IO[str], gzip.open(file, "rt", encoding="utf-8", errors="replace"))
    return open(file, encoding="utf-8", errors="replace")


def _iter_file(file: Path) -> Iterator[str]:
    suffix = _bare_suffix(file)
    try:
        with _open(file) as stream:
            if suffix == ".jsonl":
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield _text_of(json.loads(line), file, number)
            elif suffix == ".json":
                whole = json.load(stream)
                for number, entry in enumerate(whole if isinstance(whole, list) else [whole], 1):
                    yield _text_of(entry, file, number)
            else:
                yield stream.read()
    except json.JSONDecodeError as error:
        raise ValueError(f"path {file} is not valid JSON ({error}); name a json, jsonl or text file") from error
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"path {file} does not decompress ({error}); fetch it again") from error


def _text_of(entry: object, file: Path, number: int) -> str:
    text = entry.get("text") if isinstance(entry, dict) else entry
    if isinstance(text, str):  # JSON can name half a character, which no tokenizer takes
        return text.encode("utf-8", "replace").decode("utf-8")
    raise ValueError(f'path {file}, entry {number} has no "text"; every entry must be an object with a "text" string')
