"""The identity of files by their contents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PIECE, _PIECES = 1 << 20, 64  # bytes of a piece and number of pieces that identify a very large file


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any of the settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_identity(path: str | os.PathLike[str] | None) -> list[Any]:
    """Names, sizes and hashes of a file or of the files in a folder: the same for a copy, another after a change."""
    if path is None or not Path(path).exists():
        return [str(path)]
    where = Path(path)
    files = [where] if where.is_file() else sorted(f for f in where.rglob("*") if f.is_file())
    return [[str(f.relative_to(where)), f.stat().st_size, _digest(f)] for f in files]


def _digest(file: Path) -> str:
    """A hash of a file's bytes, or of 64 pieces of 1 MiB, the first and last included, of a file above 64 MiB."""
    digest, size = hashlib.blake2b(digest_size=8), file.stat().st_size
    last = max(0, size - _PIECE)
    starts = range(0, size, _PIECE) if size <= _PIECES * _PIECE else (last * i // (_PIECES - 1) for i in range(_PIECES))
    with open(file, "rb") as stream:
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(_PIECE))
    return digest.hexdigest()
