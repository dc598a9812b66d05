"""Checkpoints are whole or do not count: a marker is written last, and folders without it are ignored."""

import json
import re
import shutil
from pathlib import Path

from titanslab.files import sync, write_whole

MARKER = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


def mark_complete(folder: Path) -> None:
    """Force a checkpoint's files to disk, then write the marker that lists them and their sizes.

    The Trainer's training_args.bin is deleted: it is a pickle, and recipe.toml holds the same settings.
    """
    (folder / "training_args.bin").unlink(missing_ok=True)
    sync(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    write_whole(folder / MARKER, json.dumps(sizes, indent=1))


def is_complete(folder: Path) -> bool:
    """Whether the marker exists and every file that it lists has the listed size."""
    try:
        sizes = json.loads((folder / MARKER).read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


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
