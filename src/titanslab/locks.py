"""One writer a place: a lock on a folder or a file while this process writes it."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from titanslab.files import naming

MOST = 4096  # bytes of a lock file that are read


@contextmanager
def only_writer(
    place: str | os.PathLike[str], name: str, waiting: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Be the only process that writes `place` until the block ends.

    The lock is a hidden file beside the place, `.NAME.lock`, and says who holds it. It is removed at the end. The
    system releases the lock of a process that was killed; the file that such a process leaves blocks nobody. Where the
    file system has no locks (`flock`), the existence of the file is the lock: that of a killed process then blocks
    until another process of the same computer finds its owner gone, or somebody deletes the file.

    Args:
        place: a folder or a file, which need not exist yet; missing folders above it are made.
        name: how the message calls it, such as "output folder".
        waiting: called once, with a message that names the holder, before this process waits for the place; None =
            a place that another process holds is an error.

    Raises:
        ValueError: another process holds the place, and `waiting` is None; the message says which one.
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
        busy = f"{name} {str(place)!r} is being written by another process{holder or _holder(path, 0.5)}"
        if waiting is None:
            raise ValueError(f"{busy}; wait for it, end it, or give another place") from None
        waiting(busy)
        lock.acquire(timeout=-1)
    except (OSError, NotImplementedError) as error:  # older releases of filelock raise the latter
        if getattr(error, "filename", None) is not None:
            raise
        raise ValueError(
            f"{name} {str(place)!r} is on a file system that cannot lock files ({error}); mount it with locks, or give "
            "a place on another one"
        ) from error
    signed = False
    try:
        signed = _sign(path)
        yield
    finally:
        # The name goes while the lock is held: who opened the file before finds it gone and makes a new one. A file
        # that filelock wrote is its own to remove: it is the lock itself.
        if signed:
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


def _sign(path: Path) -> bool:
    """Write who holds the lock; False if filelock has written it, which uses the file's existence as the lock."""
    if path.stat().st_size > 0 and "since" not in (said := _read(path)) and said.get("process") == os.getpid():
        return False
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        with naming(path):
            path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
    except OSError:  # such as a full disk
        path.unlink(missing_ok=True)
        raise
    return True


def _holder(path: Path, seconds: float = 0.0) -> str:
    """Who signed the lock's file, or signs it within some seconds, in words for a message; else nothing."""
    end = time.monotonic() + seconds
    while not (said := _read(path)) and time.monotonic() < end:
        time.sleep(0.01)
    if not said:
        return ""
    since = f", since {said['since']}" if "since" in said else ""
    return f" (process {said['process']} on {said['host']}{since})"


def _read(path: Path) -> dict[str, object]:
    """Process, host and time from a lock's file, or nothing; a file that filelock wrote has no time."""
    try:
        text = path.read_bytes()[:MOST].decode()
        if text[:1].isdigit():
            process, host = text.split("\n")[:2]
            return {"process": int(process), "host": host}
        said = json.loads(text)
        return said if {"process", "host", "since"} <= said.keys() else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
