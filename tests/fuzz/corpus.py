"""Training texts in every form, and the cache of their tokens."""

import gzip
import json
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import valid
from .command import DONE, FAULT, Answer, Case, judged, titans
from .damage import Pickle, nested


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """A corpus with one change, or a damaged cache of its tokens."""
    return rng.choice([_rows, _rows, _text, _packed, _folder, _cache, _cache])(rng, files, folder)


def _case(name: str, source: Path, count: int | None, refuse: bool = False) -> Case:
    """Tokenise `source`, which holds `count` documents; None = as many as the reader finds."""

    def run() -> Answer:
        found: list[int] = []
        answer = judged(lambda: found.append(_tokens(source).documents))
        if answer.verdict == DONE and count is not None and found != [count]:
            return Answer(FAULT, f"{found[0]} documents were read of {count}")
        return answer

    return Case(name, run, refuse)


def _tokens(source: Path, cache: Path | None = None) -> Any:
    from titanslab.data import byte_tokenizer, open_corpus, tokenize

    return tokenize(open_corpus(str(source)), byte_tokenizer(), cache=cache)


def _rows(rng: random.Random, files: Path, folder: Path) -> Case:
    lines = (files / valid.LINES).read_bytes().splitlines()
    where = rng.randrange(len(lines) - 1)
    line, count = lines[where], len(lines)
    changes: dict[str, tuple[bytes, int | None, bool]] = {
        "cut": (line[: rng.randrange(1, len(line))], None, True),
        "empty": (b"", count - 1, False),
        "a list": (b"[1]", None, True),
        "a number": (b"5", None, True),
        "no text": (b'{"n": 1}', None, True),
        "text is a number": (b'{"text": 5, "n": 1}', None, True),
        "text is a table": (b'{"text": {"a": 1}, "n": 1}', None, True),
        "zero byte": (line[:12] + b"\0" + line[12:], None, False),
        "no UTF-8": (b'{"text": "caf\xe9", "n": 1}', None, True),
        "half a pair": (b'{"text": "a \\ud800 b", "n": 1}', None, False),
        "more": (line + b" and more", None, True),
        "nested": (b'{"text": "a", "n": ' + nested().encode() + b"}", None, False),
        "long number": (b'{"text": "a", "n": ' + b"9" * 500 + b"}", None, False),
        "NaN": (b'{"text": "a", "n": NaN}', count, False),
    }
    name = rng.choice(sorted(changes))
    lines[where], count, refuse = changes[name]  # type: ignore[assignment]
    source = folder / "rows.jsonl"
    source.write_bytes(b"\n".join(lines) + b"\n")
    if rng.random() < 0.2:  # the message of the verb
        words = (files / valid.RECIPE, "--set", f"data.train={source}", "--set", "data.text_documents=file")
        train = ("train", *words, "--set", "training.steps=1", "--output", folder / "run")
        return Case(f"train, line {where} {name}", lambda: titans(*train), refuse)
    return _case(f"line {where} {name}", source, count, refuse)


def _text(rng: random.Random, files: Path, folder: Path) -> Case:
    whole = (files / valid.TEXT).read_text()
    changes: dict[str, tuple[bytes, bool]] = {
        "Latin-1": (whole.encode("latin-1"), True),
        "UTF-16": (whole.encode("utf-16"), True),
        "cut character": ("é".encode()[:-1].join([b"a", b""]), True),
        "surrogate": (b"abc \xed\xa0\x80 ", True),
        "empty": (b"", True),
        "blanks": (b" \n \n", False),
        "zero bytes": (b"a\0b " * 40, False),
        "one line": (b"a" * 1_000_000, False),
        "byte order mark": (b"\xef\xbb\xbf" + whole.encode(), False),
        "no characters": ("\uffff\ufffe\U0010ffff ".encode() * 30, False),
    }
    name = rng.choice(sorted(changes))
    (folder / "text.txt").write_bytes(changes[name][0])
    return _case(f"text {name}", folder / "text.txt", None, changes[name][1])


def _packed(rng: random.Random, files: Path, folder: Path) -> Case:
    lines = (files / valid.LINES).read_bytes()
    count, whole = len(lines.splitlines()), gzip.compress((files / valid.LINES).read_bytes())
    where = rng.randrange(20, len(whole) - 9)
    changes: dict[str, tuple[str, bytes, int | None, bool]] = {
        "gzip": ("rows.jsonl.gz", whole, count, False),
        "gzip cut": ("rows.jsonl.gz", whole[:where], None, True),
        "gzip a byte": ("rows.jsonl.gz", whole[:where] + bytes([whole[where] ^ 4]) + whole[where + 1 :], None, True),
        "not gzip": ("rows.jsonl.gz", lines, None, True),
        "parquet noise": ("rows.parquet", b"PAR1" + rng.randbytes(300) + b"PAR1", None, True),
        "array": ("rows.json", json.dumps([json.loads(line) for line in lines.splitlines()]).encode(), count, False),
        "array cut": ("rows.json", b"[" + lines.replace(b"\n", b",")[:-1], None, True),
        "nested": ("rows.json", nested().encode(), None, True),
    }
    name = rng.choice(sorted(changes))
    file, data, number, refuse = changes[name]
    (folder / file).write_bytes(data)
    return _case(name, folder / file, number, refuse)


def _folder(rng: random.Random, files: Path, folder: Path) -> Case:
    source = folder / "texts"
    source.mkdir()
    (source / "a.txt").write_text("the first text")
    name = rng.choice(["hidden", "other bytes", "loop", "no UTF-8", "odd name", "folder", "parquet noise"])
    count, refuse = 1, False
    if name == "hidden":
        (source / ".b.txt").write_bytes(b"\xff\xff")
    elif name == "other bytes":
        (source / "b.bin").write_bytes(rng.randbytes(500))
    elif name == "loop":
        (source / "b").symlink_to(source)
        (source / "b.txt").symlink_to("b.txt")
    elif name == "no UTF-8":
        (source / "b.txt").write_bytes(b"\xff\xff")
        refuse = True
    elif name == "odd name":
        (source / rng.choice(["[a-z]*.txt", "~b.txt", "<script>.txt", "a\nb.txt", "%s{0}.txt"])).write_text("another")
        count = 2
    elif name == "folder":
        (source / "b.txt").mkdir()
    else:
        (source / "b.parquet").write_bytes(rng.randbytes(500))
        refuse = True
    return _case(f"folder with {name}", source, count, refuse)


def _cache(rng: random.Random, files: Path, folder: Path) -> Case:
    """Tokens that were made once and then damaged: they are made again, or refused, and never others."""
    import numpy as np

    source, cache = files / valid.LINES, folder / "cache"
    good = _tokens(source, cache)
    ids, numbers = good.piece(0, len(good))
    place = next(path for path in cache.iterdir() if path.is_dir())
    file = rng.choice(sorted(path.name for path in place.iterdir()))
    kinds = ["float32", "int8", "uint32", "uint8", "object", None]
    data = (place / file).read_bytes()
    cut = rng.randrange(len(data))
    manifest = next(place.glob("*.json"))
    values = ["[]", "{}", "null", '{"format": "a"}', '{"format": -1}', '{"format": 1}', nested()]
    told = json.loads(manifest.read_text())
    where = rng.choice(["tokens", "documents", "text_bytes", "tokens_checksum"])

    def retold() -> None:
        told["shards"][0][where] = rng.choice([-7, 10**9, 2**63, "a", None])
        manifest.write_text(json.dumps(told))

    def of_a_type() -> None:
        told["dtype"] = rng.choice(kinds)
        manifest.write_text(json.dumps(told))

    changes: dict[str, Callable[[], object]] = {
        f"{file} cut": lambda: (place / file).write_bytes(data[:cut]),
        f"{file} a bit": lambda: (place / file).write_bytes(data[:cut] + bytes([data[cut] ^ 1]) + data[cut + 1 :]),
        f"{file} missing": lambda: (place / file).unlink(),
        f"{file} a pickle": lambda: (place / file).write_bytes(pickle.dumps(Pickle(folder / "unpickled"))),
        f"{file} doubled": lambda: (place / file).write_bytes(data + data),
        "ids of a type": of_a_type,
        f"{where} of a shard": retold,
        "no shards": lambda: manifest.write_text(json.dumps(told | {"shards": []})),
        "manifest": lambda: manifest.write_text(rng.choice(values)),
        "emptied": lambda: [path.unlink() for path in place.iterdir()],
    }
    name = rng.choice(list(changes))
    changes[name]()

    def run() -> Answer:
        found: list[Any] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = judged(lambda: found.append(_tokens(source, cache)))
        if answer.verdict != DONE:
            return answer
        now = found[0].piece(0, len(found[0]))
        same = np.array_equal(now[0], ids) and np.array_equal(now[1], numbers)
        return answer if same else Answer(FAULT, "the damaged tokens were taken")

    return Case(f"cache: {name}", run)
