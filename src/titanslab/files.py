"""Files that are written whole or not at all, and the identity of files by their contents."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Errors of writing that have no file name, and the words for them in the errors of other libraries.
FULL = {errno.ENOSPC: ("No space left",), getattr(errno, "EDQUOT", -1): ("Disk quota exceeded",)}
_PIECE, _PIECES = 1 << 20, 64  # bytes of a piece and number of pieces that identify a very large file


def write_whole(path: str | os.PathLike[str], content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file, or a folder of files, so that a reader finds the old or the new one and never a part.

    The content goes to a temporary name in the same folder, is forced to disk and renamed. After an error nothing
    is left behind; what a killed process left is deleted by the next write of the same path.

    Args:
        path: the name to write. An existing file is replaced; an existing folder must be empty.
        content: text (written as UTF-8), bytes, or a function that writes a file or a folder at the path it is given.

    Raises:
        OSError: the folder of `path` does not exist or cannot be written to, or `path` is a folder with files in it.
    """
    path = Path(path)
    _remove_leftovers(path)
    temporary = made = _temporary(path)
    try:
        with naming(path):
            if callable(content):
                temporary.mkdir()  # a library may put a temporary file of its own beside the one that it writes
                content(made := temporary / path.name)
            else:
                made.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(made)
            os.replace(made, path)
    finally:
        _remove(temporary)


def remove_whole(path: Path) -> None:
    """Delete a file or a folder, if it is there, so that a reader finds all of it or nothing.

    What a killed process leaves of it is deleted by the next `write_whole` of the same path.
    """
    aside = _temporary(path)
    with suppress(FileNotFoundError):
        os.replace(path, aside)
        _remove(aside)


def put_in_place(made: Path, target: Path, last: str) -> None:
    """Move a folder's files into the folder `target`, the file named `last` at the end; then `made` is gone.

    Where `target` does not exist, `made` becomes it in one step.
    """
    sync(made)
    if not target.exists():
        os.replace(made, target)
        return
    for path in sorted(made.iterdir(), key=lambda p: (p.name == last, p.name)):
        if path.is_dir() and (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        os.replace(path, target / path.name)
    made.rmdir()


def check_writable(path: Path, name: str) -> None:
    """Raise ValueError if `path` cannot be made or changed; `name` is how the message calls it.

    A command calls it before long work, so that the result can be written.
    """
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0)):
        raise ValueError(
            f"{name} {str(path)!r} cannot be written: {str(place)!r} is read-only here; give another place"
        )


def check_new_folder(path: Path, name: str) -> None:
    """Raise ValueError unless `path` is new, or an empty folder, and can be written; `name` as in `check_writable`."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name} {str(path)!r} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{name} {str(path)!r} already holds files; give another name")
    check_writable(path, name)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of the system in writing, such as a full disk, becomes an OSError that names `path`.

    Other libraries raise such errors with types of their own and without a file name.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        number = _system_error(error)
        if number is None or (isinstance(error, OSError) and number not in FULL):
            raise
        advice = "; free some and run the command again" if number in FULL else ""
        raise OSError(number, os.strerror(number) + advice, str(path)) from error


def _system_error(error: Exception) -> int | None:
    """The number of the system's error that is behind an error of any library, if one is."""
    text = str(error)
    if full := next((n for n, texts in FULL.items() if any(t in text for t in texts)), None):
        return full
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", text)
    return int(found[1]) if found else None


def sync(path: Path) -> None:
    """Force a file, or every file in a folder, from the system's buffers to disk."""
    mode = "rb+" if sys.platform == "win32" else "rb"  # Windows syncs a file only if it is open for writing
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with open(file, mode) as stream:
                os.fsync(stream.fileno())


def _temporary(path: Path) -> Path:
    """The name under which this thread prepares `path`; `_remove_leftovers` knows it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Delete the temporary files of killed writers of `path`; a writer at work keeps its own."""
    if sys.platform == "win32":  # os.kill(number, 0) would interrupt the process there
        return
    name = re.compile(re.escape(f".{path.name}.") + r"(\d+)(-\d+)?\.tmp")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if match := name.fullmatch(leftover.name):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                _remove(leftover)
            except (OSError, OverflowError):
                continue


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any of the settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def checksum(parts: Iterable[bytes | memoryview]) -> str:
    """The XXH3 checksum of bytes-like parts one after the other, 32 hexadecimal digits.

    It finds damage, and no change made on purpose.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def file_checksum(path: Path) -> str:
    """The `checksum` of a file's bytes, which are read piece by piece."""

    def pieces() -> Iterator[memoryview]:
        piece = memoryview(bytearray(_PIECE))
        with open(path, "rb", buffering=0) as stream:
            while size := stream.readinto(piece):
                yield piece[:size]

    return checksum(pieces())


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
