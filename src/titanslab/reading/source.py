"""A text file of any size, plain or compressed, as pieces of text that end before a space."""

from __future__ import annotations

import bz2
import gzip
import io
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
    """Some of a text. `start`: its first byte in the decompressed text. `begin`, `end`: about where in the file."""

    text: str
    start: int
    begin: int
    end: int


class TextSource:
    """Text in UTF-8 from a file, a piece at a time; a piece depends on where it starts alone.

    Raises FileNotFoundError and ValueError (no file, not UTF-8, damaged or cut off) naming the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name a file of text")
        if not self.path.exists():
            raise FileNotFoundError(f"text {str(self.path)!r} does not exist (looked for {self.path.absolute()})")
        if not self.path.is_file():
            raise ValueError(f"{self.path} is a pipe or a device; a text that can be gone on with is a file")
        self.size = self.path.stat().st_size

    def pieces(self, start: int = 0) -> Iterator[TextPiece]:
        """The pieces from byte `start` of the decompressed text on."""
        with open(self.path, "rb") as raw, self._errors():
            stream = _decompressed(raw, self.path)
            self._skip(stream, start)
            buffer = b""
            place = start if stream is raw else raw.tell()
            while True:
                buffer = _fill(stream, buffer)
                if not buffer:
                    return
                cut = _cut(buffer) if len(buffer) == PIECE_BYTES else len(buffer)
                begin, place = place, start + cut if stream is raw else raw.tell()
                yield TextPiece(self._decode(buffer[:cut], start), start, begin, place)
                start += cut
                buffer = buffer[cut:]

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
        except Exception as error:
            # the packages for .zst have their own ZstdError each, and may not be there
            known = isinstance(error, lzma.LZMAError | zlib.error | EOFError) or type(error).__name__ == "ZstdError"
            if not known and not (isinstance(error, OSError) and error.errno is None):
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
    return io.BufferedReader(_Frames(raw, zstandard.ZstdDecompressor()))


class _Frames(io.RawIOBase):
    """The frames of a .zst file one after the other; EOFError where the last one is cut off."""

    def __init__(self, raw: IO[bytes], decompressor: Any) -> None:
        self.raw, self.decompressor = raw, decompressor
        self.frame: Any = None
        self.ready, self.waiting = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self.ready:
            data = self.waiting or self.raw.read(1 << 12)  # a little can be a lot of text
            if not data:
                if self.frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            self.frame = self.frame or self.decompressor.decompressobj()
            self.ready = self.frame.decompress(data)
            self.waiting = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame = None
        size = min(len(into), len(self.ready))
        into[:size], self.ready = self.ready[:size], self.ready[size:]
        return size
