"""A folder of tokens: shards of ids that are mapped into memory, the documents' boundaries beside them, a manifest.

    titans-tokens.json       the manifest, a `Manifest`
    tokens-00000.bin         ids of the first shard, end to end: uint16 or uint32, little-endian
    documents-00000.bin      int64 [documents + 1], little-endian; document i of the shard is ids[these[i]:these[i + 1]]
    tokens-00001.bin ...

A shard holds whole documents. `titans tokenize` keeps the tokenizer in the same folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from titanslab.data.encode import TextEncoder, tokenizer_identity
from titanslab.data.text import TOKENS as MANIFEST
from titanslab.data.text import local_path
from titanslab.documents import DocumentError, read_json
from titanslab.files import file_checksum, write_whole

FORMAT = 1
OFFSET = np.dtype("<i8")
AGAIN = "copy the folder again, or make it again with titans tokenize"

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class TokenizerFacts(Struct, frozen=True):
    """What tells two tokenizers apart that would give other ids.

    Args:
        identity: of `tokenizer_identity`.
        size: number of tokens.
        bos, eos: the tokens around a document.
        splits_special: whether text that spells a special token is encoded as its letters.
    """

    identity: str
    size: Count
    bos: int | None
    eos: int | None
    splits_special: bool

    @classmethod
    def of(cls, encoder: TextEncoder) -> TokenizerFacts:
        tokenizer = encoder.tokenizer
        splits = bool(getattr(tokenizer, "split_special_tokens", False))
        return cls(tokenizer_identity(tokenizer), len(tokenizer), encoder.bos, encoder.eos, splits)


class Shard(Struct, frozen=True):
    """A shard: its tokens, documents and bytes of text, and the checksums of its two files (XXH3, 128 bits)."""

    tokens: Count
    documents: Annotated[int, Meta(ge=1)]
    text_bytes: Count
    tokens_checksum: str
    documents_checksum: str


class Unfinished(Struct, frozen=True):
    """Where the whole shards end, while others are to come.

    Args:
        file, row: the last document in them, see `titanslab.data.corpus.Entry`; 0 and 0 before the first.
        source: fingerprint of the files up to there.
    """

    file: Count
    row: Count
    source: str


class Totals(Struct, frozen=True):
    """The sums over all shards."""

    tokens: Count
    documents: Count
    text_bytes: Count


class Manifest(Struct):
    """titans-tokens.json. Once it is finished it depends on the texts and the tokenizer alone.

    Args:
        format: version of the format.
        tokenizer: whose ids the shards hold.
        dtype: of the ids.
        shard_tokens: a shard ends with the document that reaches this number.
        shards: in their order.
        totals: of the shards; they tell when a shard was lost from the list.
        unfinished: None once all texts are in the shards.
    """

    format: Annotated[int, Meta(ge=1)]
    tokenizer: TokenizerFacts
    dtype: Literal["uint16", "uint32"]
    shard_tokens: Annotated[int, Meta(ge=1)]
    shards: list[Shard]
    totals: Totals
    unfinished: Unfinished | None = None

    def counted(self) -> Totals:
        """The totals, counted in the list of shards."""
        names = ("tokens", "documents", "text_bytes")
        return Totals(*(sum(getattr(shard, name) for shard in self.shards) for name in names))

    @property
    def stored(self) -> np.dtype:
        """The type of the ids in the files."""
        return np.dtype(self.dtype).newbyteorder("<")

    def files(self) -> Iterator[tuple[str, int, str]]:
        """Name, size in bytes and checksum of each file of the shards."""
        for number, shard in enumerate(self.shards):
            yield tokens_file(number), shard.tokens * self.stored.itemsize, shard.tokens_checksum
            yield documents_file(number), (shard.documents + 1) * OFFSET.itemsize, shard.documents_checksum

    def write(self, folder: Path) -> None:
        self.totals = self.counted()
        write_whole(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def tokens_file(number: int) -> str:
    return f"tokens-{number:05}.bin"


def documents_file(number: int) -> str:
    return f"documents-{number:05}.bin"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; DocumentError or OSError where there is none that can be used."""
    manifest = read_json(folder / MANIFEST, Manifest, fix=AGAIN)
    if manifest.format != FORMAT:
        raise DocumentError(
            f"{folder / MANIFEST}: format is {manifest.format}, and this release reads {FORMAT}; use the release that "
            "wrote it, or make it again with titans tokenize"
        )
    if manifest.totals != manifest.counted() or not (manifest.totals.tokens or manifest.unfinished):
        raise DocumentError(f"{folder / MANIFEST}: shards do not add up to totals, or hold no token; {AGAIN}")
    return manifest


def token_folder(source: Any) -> Path | None:
    """The folder of tokens that a source of data names; None for other sources."""
    if not isinstance(source, str | os.PathLike) or not str(source):
        return None
    path = local_path(os.fspath(source))
    return path if (path / MANIFEST).is_file() else None


class ShardedTokens:
    """The tokens in a folder, mapped into memory; a shard is compared with its checksums when it is first read.

    Args:
        folder: a folder that `titans tokenize` has finished.
        name: how errors call it, such as "data.train".

    Raises:
        FileNotFoundError, ValueError: the manifest cannot be used, or a file is missing or of another size. A shard
            that does not agree with its checksum raises a ValueError when it is read.
    """

    def __init__(self, folder: Path, name: str = "tokens") -> None:
        self.folder, self.name = folder, name
        self.manifest = read_manifest(folder)
        if self.manifest.unfinished is not None:
            raise ValueError(
                f"{name}: {str(folder)!r} is not finished; give the command that began it (titans tokenize) once more, "
                "with --resume"
            )
        check_sizes(folder, self.manifest, name)
        shards = self.manifest.shards
        self.text_bytes, self.documents = self.manifest.totals.text_bytes, self.manifest.totals.documents
        self._starts = np.cumsum([0, *(shard.tokens for shard in shards)], dtype=np.int64)
        self._documents_before = np.cumsum([0, *(shard.documents for shard in shards)], dtype=np.int64)
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a map would be copied with all that it maps

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise ValueError unless the ids are those of this tokenizer."""
        has, wanted = self.manifest.tokenizer, TokenizerFacts.of(TextEncoder(tokenizer))
        if has == wanted:
            return
        names = ("size", "identity", "bos", "eos", "splits_special")
        other = next(name for name in names if getattr(has, name) != getattr(wanted, name))
        raise ValueError(
            f"{self.name}: {str(self.folder)!r} holds tokens of another tokenizer than data.tokenizer ({other} "
            f"{getattr(has, other)}, not {getattr(wanted, other)}); set data.tokenizer = {str(self.folder)!r}, "
            "which keeps its own, or tokenize the texts with this one"
        )

    def piece(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids [stop - start] of a part of all tokens, and the number of the document of each, both int64."""
        ids, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < min(stop, len(self)):
            first = int(self._starts[shard])
            begin, end = start - first, min(stop, int(self._starts[shard + 1])) - first
            of_shard, offsets = self._shard(shard)
            ids.append(of_shard[begin:end].astype(np.int64))
            within = np.searchsorted(offsets, np.arange(begin, end), side="right") - 1
            numbers.append(within + self._documents_before[shard])
            start, shard = first + end, shard + 1
        return np.concatenate(ids), np.concatenate(numbers)

    def lengths(self) -> np.ndarray:
        """The number of tokens of each document, int64 [documents]."""
        parts = [np.diff(self._shard(number)[1]) for number in range(len(self.manifest.shards))]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def check(self) -> None:
        """Compare every shard with its checksums; ValueError for the first that does not agree."""
        for number in range(len(self.manifest.shards)):
            self._shard(number)

    def _shard(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids and the offsets of a shard."""
        if number not in self._open:
            self._open[number] = self._opened(number)
        return self._open[number]

    def _opened(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        shard, paths = self.manifest.shards[number], [self.folder / f(number) for f in (tokens_file, documents_file)]
        for path, wanted in zip(paths, (shard.tokens_checksum, shard.documents_checksum), strict=True):
            check_file(path, wanted, self.name)
        ids, offsets = (
            np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)
            for path, kind in zip(paths, (self.manifest.stored, OFFSET), strict=True)
        )
        if offsets[0] != 0 or offsets[-1] != len(ids):
            raise ValueError(f"{self.name}: {paths[1]} does not end where {paths[0].name} ends; {AGAIN}")
        return ids, offsets


def check_sizes(folder: Path, manifest: Manifest, name: str) -> None:
    """FileNotFoundError or ValueError if a file of a shard is missing or of another size than the manifest says."""
    for file, size, _ in manifest.files():
        try:
            found = (folder / file).stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: {folder / file} is missing, which {MANIFEST} names; {AGAIN}") from None
        if found != size:
            has = f"has {found:,} bytes" if found else "is empty"
            raise ValueError(f"{name}: {folder / file} {has}, and {MANIFEST} says {size:,}; {AGAIN}")


def check_file(path: Path, wanted: str, name: str) -> None:
    """ValueError if a file does not agree with its checksum."""
    if file_checksum(path) != wanted:
        raise ValueError(f"{name}: {path} was altered: it does not agree with its checksum in {MANIFEST}; {AGAIN}")
