"""One writer a place: a lock on a folder or a file while this process writes it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

MOST = 4096  # bytes of a lock file that are read


@contextmanager
def only_writer(place: str | os.PathLike[str], name: str) -> Iterator[None]:
    """Be the only process that writes `place` until the block ends.

    The lock is a hidden file beside the place, `.NAME.lock`, and says who holds it. It is removed at the end. The
    system releases the lock of a process that was killed; the file that such a process leaves blocks nobody.

    Args:
        place: a folder or a file, which need not exist yet; missing folders above it are made.
        name: how the message calls it, such as "output folder".

    Raises:
        ValueError: another process holds the place; the message says which one.
        OSError: the lock cannot be made, because the folder above the place cannot be written to.
    """
    from filelock import FileLock, Timeout

    place = Path(os.path.realpath(place))
    made = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    path = _lock_path(place)
    holder = _holder(path)  # filelock before version 4 empties the file when it tries
    lock = FileLock(path, timeout=0, is_singleton=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{name} {str(place)!r} is being written by another process{holder or _holder(path, 0.5)}; wait for it, "
            "end it, or give another place"
        ) from None
    try:
        _sign(path)
        yield
    finally:
        # The name goes while the lock is held: who opened the file before finds it gone and makes a new one.
        with suppress(OSError):
            path.unlink()
        lock.release()
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _lock_path(place: Path) -> Path:
    """The lock's file: beside the place, or inside a folder whose parent is read-only."""
    if place.is_dir() and not os.access(place.parent, os.W_OK):
        return place / ".lock"
    return place.with_name(f".{place.name}.lock")


def _sign(path: Path) -> None:
    """Write who holds the lock; without a lock of the system, filelock itself has written that."""
    if path.stat().st_size == 0 or _read(path):
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")


def _holder(path: Path, seconds: float = 0.0) -> str:
    """Who signed the lock's file, or signs it within some seconds, in words for a message; else nothing."""
    end = time.monotonic() + seconds
    while not (said := _read(path)) and time.monotonic() < end:
        time.sleep(0.01)
    if not said:
        return ""
    return f" (process {said['process']} on {said['host']}, since {said['since']})"


def _read(path: Path) -> dict[str, object]:
    """What `_sign` wrote into a lock's file, or nothing."""
    try:
        said = json.loads(path.read_bytes()[:MOST])
        return said if {"process", "host", "since"} <= said.keys() else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
