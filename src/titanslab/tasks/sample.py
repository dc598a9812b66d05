"""The plain values of a task: a sample, a square of the result table, and lists of lengths and of names."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from titanslab.documents import checked, parse_json

LONGEST = 1 << 30  # bytes of one sample's JSON
DEPTH = Annotated[float, Meta(ge=0, le=100)] | None  # percent


@dataclass(frozen=True)
class TaskSample:
    """A prompt, its reference answer, and where in the prompt the answer stands.

    Args:
        task: name of the sub-task, such as `niah_single_1` or `babilong_qa1`.
        length: nominal length in tokens of the tokenizer that measured it; 0 for facts without background.
        index: number of the sample within its sub-task, length and seed.
        prompt, target: the text that the model reads, and the reference answer.
        info: further values for the scorer and the tables, such as `depth` in percent and `question`.
    """

    task: str
    length: int
    index: int
    prompt: str
    target: str
    info: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON; equal samples give equal bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "TaskSample":
        """Inverse of `to_json`; DocumentError for a line that is none of a sample."""
        sample = parse_json(line, cls, origin="a sample", limit=LONGEST)
        checked(sample.info.get("depth"), DEPTH, "a sample: info.depth")
        return sample


@dataclass(frozen=True)
class Cell:
    """One square of the result table: a sub-task at one length.

    Args:
        task, length: name of the sub-task, and nominal length in tokens.
        make: makes the sample with a given index.
        score: from a sample and the model's output to scores by name; the first score is the one in the table.
        settings: every value that the samples depend on, apart from their index.
    """

    task: str
    length: int
    make: Callable[[int], TaskSample]
    score: Callable[[TaskSample, str], dict[str, float]]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Sub-task and length, unique within a result folder."""
        return f"{self.task}-{self.length}"


def derive_seed(*parts: object) -> int:
    """A 64-bit seed from names and numbers, equal on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def parse_length(text: str | int, kilo: int = 1024, name: str = "length") -> int:
    """Number of tokens of a length such as `2k`, `1M` or `5000`.

    Args:
        text: digits, followed by `k`, `m` or neither, in upper or lower case.
        kilo: value of `k`: 1024 as in RULER, 1000 as in BABILong; `m` is its square.
        name: the option that `text` comes from, for the error.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([kKmM]?)\s*", str(text))
    if match is None:
        raise ValueError(f"{name} is {text!r}; it must be a number of tokens such as 4096, 4k or 1M")
    return int(match[1]) * {"": 1, "k": kilo, "m": kilo**2}[match[2].lower()]


def length_label(length: int, kilo: int = 1024) -> str:
    """Short name of a length, such as `2k` or `1M`; `0k` for 0; all digits where neither unit divides it."""
    if length % kilo**2 == 0 and length:
        return f"{length // kilo**2}M"
    return f"{length // kilo}k" if length % kilo == 0 else str(length)


def split_lengths(text: str, kilo: int, name: str = "") -> list[int]:
    """Lengths in tokens from a text such as `2k,4k,1M`, without repeats; `kilo` and `name` as in `parse_length`."""
    parts = _parts(text, name or "lengths")
    return list(dict.fromkeys(parse_length(part, kilo, name or "length") for part in parts))


def split_names(text: str, known: Sequence[str], name: str) -> list[str]:
    """Names from a text such as `a,b` or, for a range, `qa1-qa5`, without repeats.

    Args:
        text: names with commas between them.
        known: all names in their order; ValueError for any other.
        name: the option that `text` comes from, for the error.
    """
    names: list[str] = []
    for part in _parts(text, name):
        first, dash, last = part.partition("-")
        if dash and first in known and last in known and known.index(first) <= known.index(last):
            names += known[known.index(first) : known.index(last) + 1]
        elif part in known:
            names.append(part)
        else:
            raise ValueError(f"{name} has {part!r}; it must be one or more of {', '.join(known)}, with commas")
    return list(dict.fromkeys(names))


def _parts(text: str, name: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{name} is {text!r}; give one or more, with commas")
    return parts
