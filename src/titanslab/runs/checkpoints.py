"""Checkpoints are whole or do not count: a marker with every file's size and checksum is written last."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from titanslab.documents import DocumentError, checked, read_json
from titanslab.files import sync, write_whole

MARKER = "complete.json"
_NAME = re.compile(r"checkpoint-([0-9]{1,18})$", re.ASCII)
_PIECE = 1 << 20


class FileFacts(Struct):
    """The size of a file in bytes and the checksum of its contents; a marker of before has the size alone."""

    bytes: int
    xxh3: str | UnsetType = UNSET


def mark_complete(folder: Path) -> None:
    """Force a checkpoint's files to disk, then write the marker that lists them with their sizes and checksums.

    The Trainer's training_args.bin is deleted: it is a pickle, and recipe.toml holds the same settings.
    """
    (folder / "training_args.bin").unlink(missing_ok=True)
    sync(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)
    facts = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3": checksum(path)} for path in files
    }
    write_whole(folder / MARKER, json.dumps({"files": facts}, indent=1))


def checksum(path: Path) -> str:
    """The XXH3 checksum of a file's bytes, 32 hexadecimal digits. It finds damage, and no change made on purpose."""
    import xxhash

    digest, piece = xxhash.xxh3_128(), memoryview(bytearray(_PIECE))
    with open(path, "rb", buffering=0) as stream:
        while size := stream.readinto(piece):
            digest.update(piece[:size])
    return digest.hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether the marker exists and every file that it lists has the listed size."""
    return not problem(folder, contents=False)


def problem(folder: Path, *, contents: bool = True) -> str:
    """The reason why a checkpoint is not whole, such as "model.safetensors is missing"; "" for a whole one.

    With `contents` the checksum of every file is compared, which reads all of them.
    """
    try:
        facts = _facts(folder)
    except FileNotFoundError:
        return f"{MARKER} is missing"
    except (OSError, DocumentError) as error:
        return str(error)
    if not facts:
        return f"{MARKER} lists no file"
    for name, fact in facts.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != fact.bytes or not path.is_file():
                return f"{name} has {size:,} bytes in the place of {fact.bytes:,}"
            if contents and fact.xxh3 is not UNSET and checksum(path) != fact.xxh3:
                return f"{name} was changed after it was written: its checksum is another"
        except OSError as error:
            return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
        except ValueError as error:  # a null character in the name
            return f"{MARKER} names a file that cannot exist: {error}"
    return ""


def has_checksums(folder: Path) -> bool:
    """Whether the marker of a whole checkpoint lists a checksum for each file; markers of before list sizes alone."""
    return all(fact.xxh3 is not UNSET for fact in _facts(folder).values())


def _facts(folder: Path) -> dict[str, FileFacts]:
    """The files that the marker lists; DocumentError or OSError where it cannot be read."""
    table: Any = read_json(folder / MARKER, dict[str, Any])
    if set(table) == {"files"} and isinstance(table["files"], dict):
        return checked(table["files"], dict[str, FileFacts], MARKER)
    sizes = checked(table, dict[str, int], MARKER)
    return {name: FileFacts(size) for name, size in sizes.items()}


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint; -1 for another name."""
    match = _NAME.match(folder.name)
    return int(match[1]) if match else -1


def all_checkpoints(folder: Path) -> list[Path]:
    """Every folder with the name of a checkpoint, whole or not, ordered by step."""
    return sorted((p for p in folder.glob("checkpoint-*") if p.is_dir() and step_of(p) >= 0), key=step_of)


def last_complete(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step, or None."""
    return next((path for path in reversed(all_checkpoints(folder)) if is_complete(path)), None)


def remove_half_written(folder: Path) -> None:
    """Delete checkpoints without a marker, which a run was writing when it stopped."""
    for path in all_checkpoints(folder):
        if not (path / MARKER).exists():
            shutil.rmtree(path)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all whole checkpoints but the `count` newest; the marker of each goes first."""
    complete = [path for path in all_checkpoints(folder) if is_complete(path)]
    for path in complete[:-count]:
        (path / MARKER).unlink()
        shutil.rmtree(path)
