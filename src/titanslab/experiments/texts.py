"""The texts of a study: training text and held-out text from the files of --data and --validation."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from titanslab.files import write_whole

FOLDER = "texts"  # in the work folder
HELD_OUT = re.compile(r"(^|[^a-z])(valid|validation|val|dev)([^a-z]|$)")  # names of files to validate on
TEST = re.compile(r"(^|[^a-z])test([^a-z]|$)")  # names of files that are left out
EVERY = 20  # one document of so many is held out where no file is
TAIL = 0.05  # share of a single document that is held out
EXCERPT_CHARS = 20_000_000


class Split(NamedTuple):
    """Files of training text and of held-out text, and a sentence that says which they are."""

    train: list[str]
    validation: list[str]
    about: str


def split_texts(data: Sequence[str], validation: Sequence[str], work: Path | None) -> Split:
    """Training and held-out text.

    Without `data` they are the books in the package. Files of `data` whose names say validation or dev are held out,
    and those whose names say test are left out. Where no file is held out, a part of the documents is, and the two
    parts are written to the work folder; with `work` = None nothing is written.

    Raises FileNotFoundError or ValueError for sources that hold no text.
    """
    from titanslab.data.text import find_files

    if validation and not data:
        raise ValueError("--validation needs --data, the text to train on")
    if not data:
        made = _bundled(work)
        return Split(*made, "the books in the package, 1 MB, enough for a trial; give books of yours with --data")
    found = [path.absolute() for source in data for path in find_files(source, "--data")]
    if validation:
        held = [path.absolute() for source in validation for path in find_files(source, "--validation")]
        return Split([*map(str, found)], [*map(str, held)], "--data, validated on --validation")
    held = [path for path in found if HELD_OUT.search(path.name.lower())]
    train = [path for path in found if path not in held and not TEST.search(path.name.lower())]
    if held and train:
        names = ", ".join(path.name for path in held[:3])
        return Split([*map(str, train)], [*map(str, held)], f"{len(train)} files of --data, validated on {names}")
    made = _parted(found, work)
    return Split(*made, f"one document of {EVERY} of --data is held out; give other text with --validation")


def part_of(split: Split, characters: int, work: Path | None) -> Split:
    """The split with about `characters` of its training text, as many of each file; an existing part is kept."""
    from titanslab.data import open_corpus

    path = (work or Path()).absolute() / FOLDER / "train_part.jsonl"
    if work is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = open_corpus(split.train, "--data", streaming=True).beginnings(characters)
        write_whole(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Split([str(path)], split.validation, f"{split.about}; {characters:,} characters of it for this budget")


def excerpt(sources: Sequence[str], path: Path) -> str:
    """The path of a file with the first 20 million characters of the sources; an existing file is kept."""
    from titanslab.data import open_corpus

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = open_corpus(list(sources), path.stem, streaming=True).beginnings(EXCERPT_CHARS)
        write_whole(path, "\n".join(parts))
    return str(path)


def _bundled(work: Path | None) -> tuple[list[str], list[str]]:
    *training, held = lzma.decompress((files("titanslab") / "quickstart" / "text.txt.xz").read_bytes()).split(b"\n\f\n")
    if work is not None:
        folder = work / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", training), ("validation", [held])):
            lines = [json.dumps({"text": text.decode("ascii")}) for text in part]
            _write_once(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
    return _names(work)


def _parted(found: Sequence[Path], work: Path | None) -> tuple[list[str], list[str]]:
    if work is None or (work / FOLDER / "validation.jsonl").exists():
        return _names(work)
    folder = work / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    held, first, count = 0, "", 0
    drafts = [folder / f".{name}.jsonl" for name in ("train", "validation")]
    with open(drafts[0], "w", encoding="utf-8") as train, open(drafts[1], "w", encoding="utf-8") as validation:
        for text in _documents(found):
            count, first = count + 1, first or text
            out = int.from_bytes(hashlib.sha256(text[:2000].encode()).digest()[:4], "big") % EVERY == 0
            held += out
            (validation if out else train).write(json.dumps({"text": text}) + "\n")
        if not held or held == count:  # too few documents: the end of the first one is held out, and no other
            train.seek(0)
            train.truncate()
            validation.seek(0)
            validation.truncate()
            at = round(len(first) * (1 - TAIL))
            validation.write(json.dumps({"text": first[at:]}) + "\n")
            for number, text in enumerate(_documents(found)):
                train.write(json.dumps({"text": text[:at] if not number else text}) + "\n")
    if not count:
        raise ValueError(f"--data holds no text: {', '.join(map(str, found[:3]))} is empty; give a file with text")
    for draft in drafts:
        draft.replace(folder / draft.name.removeprefix("."))
    return _names(work)


def _documents(found: Sequence[Path]) -> Iterator[str]:
    from titanslab.data import open_corpus

    return iter(open_corpus([*map(str, found)], "--data", streaming=True))


def _names(work: Path | None) -> tuple[list[str], list[str]]:
    folder = (work or Path()).absolute() / FOLDER
    return [str(folder / "train.jsonl")], [str(folder / "validation.jsonl")]


def _write_once(path: Path, text: str) -> None:
    if not path.exists():
        write_whole(path, text)
