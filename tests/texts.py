"""Random texts of a few words, files of them, and the contents of a folder."""

import json
import random
from pathlib import Path

WORDS = [
    "the",
    "river",
    "ran",
    "under",
    "an",
    "old",
    "bridge",
    "where",
    "nobody",
    "had",
    "crossed",
    "since",
    "winter",
    "came",
    "to",
    "town",
    "in",
    "1923",
]


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 59 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(1, 60))) for _ in range(count)]


def write_jsonl(path: Path, entries: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in entries))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file of a folder, by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
