"""A text file of any size, plain or compressed, as pieces of text that end before a space."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class TextPiece:
    """Some of a text. `start`: its first byte in the decompressed text. `read`: bytes of the file read so far."""

    text: str
    start: int
    read: int


class TextSource:
    """Text in UTF-8 from a file, a piece at a time; a piece depends on where it starts alone.

    Raises FileNotFoundError and ValueError (not UTF-8, a damaged or unknown compression) naming the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name a file of text")
        if not self.path.exists():
            raise FileNotFoundError(f"text {str(self.path)!r} does not exist (looked for {self.path.absolute()})")
        self.size = self.path.stat().st_size

    def pieces(self, start: int = 0) -> Iterator[TextPiece]:
        """The pieces from byte `start` of the decompressed text on."""
        with open(self.path, "rb") as raw, self._errors():
            stream = _decompressed(raw, self.path)
            self._skip(stream, start)
            buffer = b""
            while True:
                buffer = _fill(stream, buffer)
                if not buffer:
                    return
                end = _cut(buffer) if len(buffer) == PIECE_BYTES else len(buffer)
                yield TextPiece(self._decode(buffer[:end], start), start, raw.tell())
                start += end
                buffer = buffer[end:]

    def _skip(self, stream: IO[bytes], start: int) -> None:
        if stream.seekable() and start:
            stream.seek(start)
            return
        while start > 0:
            part = stream.read(min(start, 1 << 20))
            if not part:
                raise ValueError(f"{self.path} is shorter than what was read of it before; is it the same text?")
            start -= len(part)

    def _decode(self, data: bytes, start: int) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} is not text in UTF-8 (byte {start + error.start}: {error.reason}); convert it"
            ) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{self.path} does not decompress ({error}); is it whole?") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise ValueError(f"{self.path} does not decompress ({error}); is it whole?") from None


def _fill(stream: IO[bytes], buffer: bytes) -> bytes:
    while len(buffer) < PIECE_BYTES and (new := stream.read(PIECE_BYTES - len(buffer))):
        buffer += new
    return buffer


def _cut(buffer: bytes) -> int:
    """Where to end a piece: before a space, which tokenizers take for the start of a word."""
    for separator in (b" ", b"\n"):
        place = buffer.rfind(separator)
        if place > 0:
            return place
    place = len(buffer)
    while place > len(buffer) - 4 and buffer[place - 1] & 0xC0 == 0x80:
        place -= 1
    return place - 1  # the last character may lack bytes


def _decompressed(raw: IO[bytes], path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(raw)  # type: ignore[return-value]
    if suffix == ".xz":
        return lzma.open(raw)
    if suffix == ".bz2":
        return bz2.open(raw)
    if suffix == ".zst":
        return _zstd(raw, path)
    return raw


def _zstd(raw: IO[bytes], path: Path) -> Any:
    try:
        from compression import zstd  # Python 3.14

        return zstd.open(raw)
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise ImportError(f"{path} needs a package to be read: pip install zstandard") from None
    return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
