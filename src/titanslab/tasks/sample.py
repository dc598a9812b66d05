"""One question put to a model, as a plain value, and the seed it grows from."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskSample:
    """A prompt, the answer looked for, and where in the text the answer was hidden.

    Args:
        task: name of the task, such as `niah_single_1` or `babilong_qa1`.
        length: nominal length in tokens of the tokenizer that measured it; 0 for facts alone.
        index: which sample of its task, length and seed; it does not depend on how many are made.
        prompt: everything the model reads.
        target: the reference answer.
        info: what the scorer and the tables need besides (`depth` in percent, `question`, positions).
    """

    task: str
    length: int
    index: int
    prompt: str
    target: str
    info: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, the same bytes for the same sample."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "TaskSample":
        """The sample that `to_json` wrote."""
        return cls(**json.loads(line))


def derive_seed(*parts: object) -> int:
    """A 64-bit seed from names and numbers, equal on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def parse_length(text: str | int, kilo: int = 1024) -> int:
    """Tokens in a length such as `2k`, `1M` or `5000`.

    Args:
        text: digits with an optional `k` or `m`, upper or lower case.
        kilo: what `k` stands for: 1024 as in RULER, 1000 as in BABILong; `m` is its square.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([kKmM]?)\s*", str(text))
    if match is None:
        raise ValueError(f"length is {text!r}; it must be a number of tokens such as 4096, 4k or 1M")
    return int(match[1]) * {"": 1, "k": kilo, "m": kilo**2}[match[2].lower()]


def length_label(length: int, kilo: int = 1024) -> str:
    """The short name of a length, `2k` or `1M`; 0 is `0k`; the plain number where neither divides it."""
    if length % kilo**2 == 0 and length:
        return f"{length // kilo**2}M"
    return f"{length // kilo}k" if length % kilo == 0 else str(length)
