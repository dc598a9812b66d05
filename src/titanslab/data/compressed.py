"""Opening a file for reading, compressed or not; errors of every library as one line that names the file."""

import bz2
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2"}


@contextmanager
def opened(path: Path, where: str, kind: str = "text") -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file and its decompressed bytes; an error in reading either becomes a ValueError in one line."""
    with open(path, "rb") as raw:
        stream = _decompressed(raw, path)
        try:
            if kind != "parquet":
                _check_encoding(head(stream), where)
            yield raw, stream
        except UnicodeDecodeError as error:  # its object ends where the stream stands
            raise not_utf8(error, where, stream.tell() - len(error.object) + error.start) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} cannot be read as {kind}: not valid JSON ({error}); is it whole?") from error
        except Exception as error:
            if type(error).__module__.startswith("pyarrow"):
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            # gzip and bz2 raise an OSError without a number; the package for zstd may not be there
            elif (
                isinstance(error, lzma.LZMAError | zlib.error | EOFError)
                or type(error).__name__ == "ZstdError"
                or (isinstance(error, OSError) and error.errno is None)
            ):
                reason = f"it does not decompress ({error})"
            elif isinstance(error, RecursionError):
                reason = "its JSON has too many tables and lists inside each other"
            elif "integer string conversion" in str(error):
                reason = "its JSON has a number of thousands of digits"
            else:
                raise
            raise ValueError(f"{where} cannot be read as {kind}: {reason}; is it whole?") from error


def not_utf8(error: UnicodeDecodeError, where: str, place: int) -> ValueError:
    return ValueError(f"{where} is not text in UTF-8 (byte {place}: {error.reason}); convert it")


def head(stream: Any) -> bytes:
    """The first bytes of a stream that stands at its start; they are not consumed."""
    return stream.peek(512)[:512]


def _check_encoding(head: bytes, where: str) -> None:
    """Raise a ValueError for UTF-16 or binary bytes, of which some are valid UTF-8."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{where} is text in UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8")
    if b"\0" in head:
        raise ValueError(
            f"{where} is not text in UTF-8 (it holds zero bytes, as UTF-16 and binary files do); convert it"
        )


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed where its first bytes or its name say so."""
    openers: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    first = head(raw)
    kind = next((kind for magic, kind in MAGIC.items() if first.startswith(magic)), path.suffix.lower())
    if kind == ".zst":
        try:
            zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
        except ImportError:
            raise ImportError(f"{path} needs a package to be read: pip install 'titans-lab[zstd]'") from None
        openers[".zst"] = zstd.open
    return openers.get(kind, lambda stream: stream)(raw)
