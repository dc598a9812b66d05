"""Files of time series, wide and long, for the verbs that read them, and the folder of a forecaster."""

import gzip
import json
import random
import shutil
from pathlib import Path

from . import valid
from .command import DONE, FAULT, Answer, Case, titans
from .damage import change_json, change_value

STRANGE_CELLS = [
    "",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "abc",
    "1,5",
    "0x10",
    "٣",
    "9" * 400,
    "-",
    "True",
    "2026-01-01",
    "\0",
]
STRANGE_TIMES = ["", "yesterday", "2026-13-01 00:00", "0000-00-00", "1e30", "2026-01-01 05:00", "9" * 30, "32/01/2026"]
STRANGE_NAMES = ["", "sales", "date", "unique_id", "ds", " ", "é🦆", "a" * 5000, '"', "a,b"]


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """A table with one change, or a forecaster whose folder has one, for a verb that reads both."""
    source = rng.choice([valid.SERIES, valid.SERIES, valid.LONG])
    text = (files / source).read_text()
    changed = rng.choice([_cell, _cell, _time, _rows, _names, _bytes, _packed, _facts])
    run_folder, verbs = files / valid.FORECASTER, ["forecast", "forecast", "evaluate", "train"]
    if changed is _facts:
        run_folder = folder / "run"
        name, refuse = _facts(rng, files, run_folder)
        file = files / source
        verbs = ["forecast", "evaluate"]
    else:
        name, data, refuse = changed(rng, text)
        file = folder / (source + (".gz" if changed is _packed else ""))
        file.write_bytes(data)
    verb = rng.choice(verbs)
    if verb == "evaluate" and source == valid.LONG:
        verb = "forecast"  # the columns of the forecaster are those of the wide table
    steps = ("--steps", rng.choice(["fill", "rows"])) if verb == "forecast" and rng.random() < 0.3 else ()

    def run() -> Answer:
        made = folder / "made.csv"
        recipe = files / valid.SERIES_RECIPE
        words: dict[str, tuple[object, ...]] = {
            "forecast": ("forecast", file, "--horizon", 4, "--model", run_folder, "--output", made, *steps),
            "evaluate": ("evaluate", "forecasting", "--model", run_folder, "--data", file, "-o", folder / "scores"),
            "train": ("train", recipe, "--set", f"series.file={file}", "--output", folder / "trained"),
        }
        answer = titans(*words[verb])
        if answer.verdict == DONE and verb == "forecast" and not made.exists():
            return Answer(FAULT, "no forecast was written")
        return answer

    return Case(f"{verb} {source}: {name}", run, refuse)


def _fields(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


def _text(rows: list[list[str]]) -> bytes:
    return ("\n".join(",".join(row) for row in rows) + "\n").encode("utf-8", "surrogatepass")


def _cell(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    rows = _fields(text)
    at, column = rng.randrange(1, len(rows)), rng.randrange(1, len(rows[0]))
    rows[at][column] = rng.choice(STRANGE_CELLS)
    return f"{rows[0][column]} of row {at} = {rows[at][column][:20]!r}", _text(rows), False


def _time(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    rows = _fields(text)
    column = next(i for i, name in enumerate(rows[0]) if name in ("date", "ds"))
    at = rng.randrange(1, len(rows))
    rows[at][column] = rng.choice(STRANGE_TIMES)
    return f"time of row {at} = {rows[at][column][:20]!r}", _text(rows), False


def _rows(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    rows = _fields(text)
    change = rng.choice(["none", "few", "one", "twice", "gone", "shorter", "longer", "constant", "order", "head twice"])
    at = rng.randrange(2, len(rows) - 1)
    refuse = change == "none" or (
        change == "one" and rows[0][0] == "date"
    )  # a short series of a long file may begin late
    if change in ("none", "one", "few"):
        rows = rows[: {"none": 1, "one": 2, "few": 9}[change]]
    elif change == "twice":
        rows.insert(at, list(rows[at]))
    elif change == "gone":
        del rows[at]
    elif change == "shorter":
        rows[at] = rows[at][:-1]
    elif change == "longer":
        rows[at] = [*rows[at], "7"]
    elif change == "constant":
        rows = [rows[0], *([*row[:-1], "7"] for row in rows[1:])]
    elif change == "order":
        body = rows[1:]
        rng.shuffle(body)
        rows = [rows[0], *body]
    else:
        rows.insert(at, list(rows[0]))
    return f"rows {change}", _text(rows), refuse


def _names(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    rows = _fields(text)
    if rng.random() < 0.2:
        return "no names", _text(rows[1:]), False
    column = rng.randrange(len(rows[0]))
    rows[0][column] = rng.choice(STRANGE_NAMES)
    return f"name {column} = {rows[0][column][:20]!r}", _text(rows), False


def _bytes(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    data = text.encode()
    where = rng.randrange(1, len(data))
    changes: dict[str, tuple[bytes, bool]] = {
        "empty": (b"", True),
        "cut": (data[:where], False),
        "a byte": (data[:where] + bytes([rng.randrange(256)]) + data[where + 1 :], False),
        "zeros": (bytes(400), True),
        "byte order mark": (b"\xef\xbb\xbf" + data, False),
        "UTF-16": (text.encode("utf-16"), False),
        "no UTF-8": (data.replace(b"0", b"\xff", 1), False),
        "semicolons": (data.replace(b",", b";"), False),
        "tabs": (data.replace(b",", b"\t"), False),
        "CRLF": (data.replace(b"\n", b"\r\n"), False),
        "a quote": (data[:where] + b'"' + data[where:], False),
        "JSON": (b'{"a": [1, 2]}', True),
        "parquet": (b"PAR1" + rng.randbytes(300) + b"PAR1", True),
    }
    name = rng.choice(sorted(changes))
    return name, *changes[name]


def _packed(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    data = gzip.compress(text.encode(), mtime=0)
    change = rng.choice(["whole", "cut", "not packed", "a byte", "twice"])
    where = rng.randrange(12, len(data))
    found = {
        "whole": data,
        "cut": data[:where],
        "not packed": text.encode(),
        "a byte": data[:where] + bytes([data[where] ^ 0xFF]) + data[where + 1 :],
        "twice": data + data,
    }[change]
    return f"gzip {change}", found, change in ("cut", "not packed", "a byte")


def _facts(rng: random.Random, files: Path, run_folder: Path) -> tuple[str, bool]:
    """The forecaster's folder with one change in series.json or config.json."""
    shutil.copytree(files / valid.FORECASTER, run_folder, ignore=shutil.ignore_patterns("checkpoints"))
    file = run_folder / rng.choice(["series.json", "series.json", "config.json"])
    if rng.random() < 0.1:
        file.unlink()
        return f"{file.name} is missing", file.name == "config.json"
    if rng.random() < 0.4:
        name, data, broken = change_json(rng, file.read_text())
        file.write_bytes(data)
        return f"{file.name} {name}", broken
    tree = json.loads(file.read_text())
    name = change_value(rng, tree)
    file.write_text(json.dumps(tree))
    return f"{file.name} {name}", False
