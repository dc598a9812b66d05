"""Changes of bytes, of JSON text, of values in nested data, and of files of safetensors."""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

STRANGE = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**63), 10**40, 10**500, 0.5, -0.5, 1e-320, 1e308,
    float("nan"), float("inf"), "", "a", "1", "-1", "NaN", "1e999", "é🦆", "\0", "\ud800", "../../../etc/passwd", "/",
    "7" * 6000, [], [0], [[]], ["a"], [1.5, None], {}, {"a": 0}, {"": {}},
]  # fmt: skip


class Pickle:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def nested(depth: int = 100_000) -> str:
    """Lists inside each other, more than a recursive reader can take."""
    return "[" * depth + "]" * depth


def change_value(rng: random.Random, tree: Any) -> str:
    """Replace or remove one value inside nested dicts and lists, in place; returns words about it."""
    places: list[tuple[Any, Any, str]] = []

    def visit(part: Any, path: str) -> None:
        keys: Any = part if isinstance(part, dict) else range(min(len(part), 5)) if isinstance(part, list) else ()
        for key in keys:
            places.append((part, key, f"{path}.{key}"))
            visit(part[key], f"{path}.{key}")

    visit(tree, "")
    part, key, path = rng.choice(places)
    if rng.random() < 0.15:
        del part[key]
        return f"{path} removed"
    part[key] = rng.choice(STRANGE)
    return f"{path} = {str(part[key])[:30]!r}"


def change_json(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    """JSON text made wrong: words, bytes, and whether it is no JSON object any more."""
    data = text.encode()
    where = rng.randrange(1, max(2, len(data) - 2))
    changes: dict[str, tuple[bytes, bool]] = {
        "empty": (b"", True),
        "cut": (data[:where], True),
        "a byte": (data[:where] + bytes([rng.randrange(256)]) + data[where + 1 :], False),
        "nested": (nested().encode(), True),
        "a list": (b"[]", True),
        "null": (b"null", True),
        "zeros": (bytes(64), True),
        "byte order mark": (b"\xef\xbb\xbf" + data, False),
        "UTF-16": (text.encode("utf-16"), True),
        "no UTF-8": (data + b"\xff", True),
        "a page": (b"<!doctype html><title>404</title>", True),
        "long key": (b'{"' + b"k" * 3_000_000 + b'": 0, ' + data.lstrip()[1:], False),
    }
    name = rng.choice(sorted(changes))
    return f"JSON {name}", *changes[name]


def change_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    """A file of safetensors damaged by its bytes: words, bytes, and whether it cannot be a whole file any more."""
    head = 8 + struct.unpack("<Q", data[:8])[0]
    name = rng.choice(["empty", "cut", "cut at header", "last byte", "longer", "header length", "header byte", "noise"])
    if name == "empty":
        return name, b"", True
    if name == "cut":
        return name, data[: rng.randrange(1, len(data))], True
    if name == "cut at header":
        return name, data[:head], True
    if name == "last byte":
        return name, data[:-1], True
    if name == "longer":
        return name, data + rng.randbytes(rng.choice([1, 8, 4096])), True
    if name == "header length":
        wrong = rng.choice([0, 1, head - 9, head, 2**32, 2**63, 2**64 - 1])
        return name, struct.pack("<Q", wrong) + data[8:], True
    if name == "header byte":
        where = rng.randrange(8, head)
        return name, data[:where] + bytes([rng.randrange(256)]) + data[where + 1 :], False
    return name, rng.randbytes(rng.choice([7, 64, 5000])), True


def change_data(rng: random.Random, data: bytes) -> bytes:
    """One bit after the header of a file of safetensors turned over."""
    head = 8 + struct.unpack("<Q", data[:8])[0]
    changed = bytearray(data)
    changed[rng.randrange(head, len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_of(data: bytes) -> dict[str, Any]:
    """The header of a file of safetensors."""
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def with_header(data: bytes, header: Any, raw: bytes | None = None) -> bytes:
    """The file with another header, given as a value or as bytes."""
    head = 8 + struct.unpack("<Q", data[:8])[0]
    text = json.dumps(header).encode() if raw is None else raw
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[head:]
