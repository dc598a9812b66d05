"""Genomes and labelled sequences, for the verbs that read them."""

import gzip
import random
from pathlib import Path

from . import valid
from .command import Answer, Case, titans

STRANGE_LETTERS = ["", "J", "é", "1", "-", "*", "\0", " ", ">", "acgt", "N" * 50, "🦆", "\t", ";"]
STRANGE_LABELS = ["", "2", "1.5", "nan", "x" * 3000, "é", "-1", "\0", "label"]
STRANGE_REGIONS = [
    "",
    "one:0-5",
    "one:5-1",
    "none",
    "one:1-999999",
    "one:",
    ":1-5",
    "one:a-b",
    "two:3",
    "one:-5-5",
    "one:1-5:9",
]
STRANGE_BED = [
    ["one", "5"],
    ["one", "9", "5", "1"],
    ["one", "-4", "5", "1"],
    ["gone", "0", "20", "1"],
    ["one", "a", "b", "1"],
]


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """A file with one change, or a strange region, for a verb that reads it."""
    return rng.choice([_labelled, _labelled, _genome, _genome, _region, _bed])(rng, files, folder)


def _labelled(rng: random.Random, files: Path, folder: Path) -> Case:
    source = rng.choice([valid.LABELLED, valid.LABELLED_FASTA])
    text = (files / source).read_text()
    name, data, refuse = (_table if source == valid.LABELLED and rng.random() < 0.6 else _bytes)(rng, text)
    file = folder / source
    if rng.random() < 0.15:
        file = folder / f"{source}.gz"
        data = gzip.compress(data, mtime=0)
        if rng.random() < 0.5:
            data, name, refuse = data[: rng.randrange(10, len(data))], f"{name}, gzip cut", True
    file.write_bytes(data)
    verb = rng.choice(["evaluate", "evaluate", "train"])

    def run() -> Answer:
        if verb == "evaluate":
            model = files / valid.CLASSIFIER
            return titans("evaluate", "dna", "--model", model, "--data", file, "-o", folder / "scores")
        recipe = files / valid.SEQUENCES_RECIPE
        return titans("train", recipe, "--set", f"sequences.train={file}", "--output", folder / "trained")

    return Case(f"{verb} {source}: {name}", run, refuse)


def _table(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    rows = [line.split("\t") for line in text.splitlines()]
    at = rng.randrange(1, len(rows))
    change = rng.choice(
        ["letters", "label", "names", "shorter", "longer", "none", "one label", "empty sequence", "no head"]
    )
    refuse = False
    if change == "letters":
        sign = rng.choice(STRANGE_LETTERS)
        rows[at][0] = rows[at][0][:5] + sign + rows[at][0][5:]
        change += f" {sign[:9]!r}"
    elif change == "label":
        rows[at][1] = rng.choice(STRANGE_LABELS)
        change += f" {rows[at][1][:9]!r}"
    elif change == "names":
        rows[0] = rng.choice([["a", "b"], ["", ""], ["sequence", "sequence"], ["label", "sequence"]])
        change += f" {rows[0]}"
    elif change == "shorter":
        rows[at] = rows[at][:1]
    elif change == "longer":
        rows[at] = [*rows[at], "x", "y"]
    elif change == "none":
        rows, refuse = rows[:1], True
    elif change == "one label":
        rows = [rows[0], *([row[0], "1"] for row in rows[1:])]
    elif change == "empty sequence":
        rows[at][0], refuse = "", True
    else:
        rows = rows[1:]
    return change, ("\n".join("\t".join(row) for row in rows) + "\n").encode(), refuse


def _bytes(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    data = text.encode()
    where = rng.randrange(1, len(data))
    changes: dict[str, tuple[bytes, bool]] = {
        "empty": (b"", True),
        "cut": (data[:where], False),
        "a byte": (data[:where] + bytes([rng.randrange(256)]) + data[where + 1 :], False),
        "zeros": (bytes(400), True),
        "no UTF-8": (data[:where] + b"\xff" + data[where:], False),
        "byte order mark": (b"\xef\xbb\xbf" + data, False),
        "UTF-16": (text.encode("utf-16"), True),
        "CRLF": (data.replace(b"\n", b"\r\n"), False),
        "a page": (b"<!doctype html><title>404</title>", True),
        "one long line": (b">x label=1\n" + b"A" * 200_000, False),
        "a letter": (data[:where] + rng.choice(STRANGE_LETTERS).encode() + data[where:], False),
    }
    name = rng.choice(sorted(changes))
    return name, *changes[name]


def _genome(rng: random.Random, files: Path, folder: Path) -> Case:
    name, data, refuse = _bytes(rng, (files / valid.GENOME).read_text())
    if name == "a page":
        refuse = True
    file = folder / valid.GENOME
    file.write_bytes(data)
    verb = rng.choice(["track", "track", "evaluate", "train"])

    def run() -> Answer:
        model = files / valid.GENOME_MODEL
        words: dict[str, tuple[object, ...]] = {
            "track": ("track", file, "--model", model, "--output", folder / "track", "--bin", 7),
            "evaluate": ("evaluate", "--model", model, "--data", file, "--context-length", 64, "-o", folder / "loss"),
            "train": ("train", files / valid.GENOME_RECIPE, "--set", f"data.train={file}", "--output", folder / "run"),
        }
        return titans(*words[verb])

    return Case(f"{verb} genome: {name}", run, refuse)


def _region(rng: random.Random, files: Path, folder: Path) -> Case:
    region = rng.choice(STRANGE_REGIONS)
    words = ("track", files / valid.GENOME, "--model", files / valid.GENOME_MODEL, "--output", folder / "track")
    return Case(f"track --region {region!r}", lambda: titans(*words, "--region", region))


def _bed(rng: random.Random, files: Path, folder: Path) -> Case:
    lines = [f"one\t{start}\t{start + 30}\t{start % 2}" for start in range(0, 300, 15)]
    wrong = rng.choice([None, *STRANGE_BED])
    if wrong is not None:
        lines[rng.randrange(len(lines))] = "\t".join(wrong)
    file = folder / "regions.bed"
    file.write_text("\n".join(lines) + "\n")
    recipe = files / valid.SEQUENCES_RECIPE
    genome = rng.choice([files / valid.GENOME, files / valid.GENOME, folder / "gone.fa"])

    def run() -> Answer:
        settings = (f"sequences.train={file}", f"sequences.reference={genome}")
        given = [word for setting in settings for word in ("--set", setting)]
        return titans("train", recipe, *given, "--output", folder / "trained")

    return Case(f"train bed: {wrong}, {genome.name}", run, wrong is not None or genome.name == "gone.fa")
