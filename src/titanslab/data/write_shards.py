"""Making a folder of tokens (`shards`) from a corpus, shard by shard; a run that was killed goes on after the last."""

from __future__ import annotations

import itertools
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data.corpus import Corpus
from titanslab.data.encode import TextEncoder
from titanslab.data.pieces import Piece, Place, pieces
from titanslab.data.shards import (
    FORMAT,
    MANIFEST,
    OFFSET,
    Manifest,
    Shard,
    TokenizerFacts,
    Totals,
    Unfinished,
    check_file,
    check_sizes,
    documents_file,
    read_manifest,
    tokens_file,
)
from titanslab.files import check_writable, checksum, fingerprint, write_whole
from titanslab.locks import only_writer
from titanslab.progress import Progress

SHARD_TOKENS = 1 << 25  # 64 MiB of uint16; so much is lost when a run is killed


def tokenize_folder(
    output: Path,
    corpus: Corpus,
    tokenizer: Any,
    *,
    processes: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenise a corpus into the new folder `output`, with the tokenizer beside the tokens.

    The files depend on the texts, the tokenizer and `shard_tokens` alone. An error or an interruption leaves the whole
    shards; before the first of them it leaves nothing.

    Args:
        output: a new or empty folder, or with `resume` that of a run that did not finish.
        corpus, tokenizer: the texts and their tokenizer.
        processes: that encode, see `titanslab.data.pool.encoded`.
        shard_tokens: a shard ends with the document that reaches this number.
        resume: keep the whole shards in the folder and go on after them.
        progress: called with the amount done and in all, in `corpus.unit`.

    Raises:
        ValueError: the folder holds something else or another process writes it, the corpus has no text or cannot be
            read, or what was read for the whole shards has changed.
        OSError: a file cannot be written, as on a full disk.
    """
    check_output(output, resume)
    encoder = TextEncoder(tokenizer)
    with only_writer(output, "output folder"):
        check_output(output, resume)  # another process may have written between
        if resume:
            manifest = read_manifest(output)
            if manifest.unfinished is None:
                return manifest
            _check_kept(output, manifest, corpus, encoder, shard_tokens)
        else:
            manifest = begin(output, encoder, shard_tokens, keep_tokenizer=True)
        try:
            return write_shards(output, manifest, corpus, encoder, processes=processes, progress=progress)
        except BaseException as error:
            if not manifest.shards:
                shutil.rmtree(output, ignore_errors=True)
            elif isinstance(error, ValueError):
                kept = f"{len(manifest.shards)} whole shard{'s' * (len(manifest.shards) > 1)}"
                raise ValueError(f"{error}. {output} keeps {kept}; the same command with --resume goes on") from error
            raise


def check_output(output: Path, resume: bool) -> None:
    """Raise ValueError unless `output` is new or empty, or with `resume` the folder of tokens."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output folder {str(output)!r} is a file; give a folder")
    check_writable(output, "output folder")
    begun = (output / MANIFEST).exists()
    if resume:
        if not begun:
            raise ValueError(
                f"output folder {str(output)!r} holds nothing to resume (no {MANIFEST}); leave --resume out"
            )
    elif begun:
        done = read_manifest(output).unfinished is None
        more = "holds finished tokens; give" if done else "holds a part of its tokens; add --resume to go on, or give"
        raise ValueError(f"output folder {str(output)!r} already {more} another --output")
    elif output.is_dir() and any(output.iterdir()):
        raise ValueError(f"output folder {str(output)!r} already holds files; give another --output")


def _check_kept(output: Path, manifest: Manifest, corpus: Corpus, encoder: TextEncoder, shard_tokens: int) -> None:
    """Raise ValueError unless a run with these arguments goes on from the shards in `output`."""
    assert manifest.unfinished is not None
    begun = f"the run in {str(output)!r} was started with"
    if manifest.tokenizer != TokenizerFacts.of(encoder):
        raise ValueError(f"{begun} another tokenizer; give that one (a copy is in the folder), or another --output")
    if manifest.shard_tokens != shard_tokens:
        raise ValueError(f"{begun} --shard-tokens {manifest.shard_tokens}, now it is {shard_tokens}; give the same")
    place = manifest.unfinished
    if place.source != _source(corpus, (place.file, place.row)):
        raise ValueError(
            f"{begun} other texts: the files up to number {place.file + 1} are not those whose tokens are kept, or "
            "were changed since; give the same sources and options, or another --output"
        )
    check_sizes(output, manifest, "output folder")
    for file, _, wanted in manifest.files():
        check_file(output / file, wanted, "output folder")


def _source(corpus: Corpus, place: Place) -> str:
    """Identity of the texts up to a place."""
    if place == (0, 0):
        return ""
    known = corpus.fingerprint(place[0] + 1) or [corpus.hub, corpus.subset, corpus.split, corpus.column]
    return fingerprint({"source": known})


def begin(folder: Path, encoder: TextEncoder, shard_tokens: int, *, keep_tokenizer: bool) -> Manifest:
    """Make a folder with a manifest without shards; `folder` is new or empty."""
    dtype: Any = encoder.dtype.name
    start = Unfinished(0, 0, "")
    manifest = Manifest(FORMAT, TokenizerFacts.of(encoder), dtype, shard_tokens, [], Totals(0, 0, 0), start)

    def fill(temporary: Path) -> None:
        temporary.mkdir()
        if keep_tokenizer:
            encoder.tokenizer.save_pretrained(temporary)
        manifest.write(temporary)

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder, fill)
    return manifest


def write_shards(
    folder: Path,
    manifest: Manifest,
    corpus: Corpus,
    encoder: TextEncoder,
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Write the shards after those in `manifest`, and finish it. The caller holds the folder's lock.

    Raises ValueError for a corpus without a token.
    """
    assert manifest.unfinished is not None
    after = (manifest.unfinished.file, manifest.unfinished.row)
    stream = pieces(corpus, encoder, processes=processes, after=after, progress=progress)
    for first in stream:
        shard, place = _write_shard(folder, manifest, itertools.chain([first], stream))
        manifest.shards.append(shard)
        manifest.unfinished = Unfinished(*place, _source(corpus, place))
        manifest.write(folder)
    if not manifest.counted().tokens:
        raise ValueError(corpus.describe_empty())
    manifest.unfinished = None
    manifest.write(folder)
    return manifest


def _write_shard(folder: Path, manifest: Manifest, stream: Iterator[Piece]) -> tuple[Shard, Place]:
    """Write one shard of the pieces of `stream`; returns the shard and the place where it ends."""
    ends, text_bytes, place, checked = array("q", [0]), 0, (0, 0), ""

    def written(file: Any) -> Iterator[memoryview]:
        """The bytes of the ids, which are written to `file`."""
        nonlocal text_bytes, place
        tokens = 0
        for piece in stream:
            data = piece.ids.astype(manifest.stored, copy=False).data.cast("B") if len(piece.ids) else memoryview(b"")
            file.write(data)
            yield data
            tokens += len(piece.ids)
            text_bytes += piece.text_bytes
            if piece.end is not None:
                ends.append(tokens)
                place = piece.end
                if tokens >= manifest.shard_tokens:
                    return

    def fill(path: Path) -> None:
        nonlocal checked
        with open(path, "wb") as file:
            checked = checksum(written(file))

    number = len(manifest.shards)
    write_whole(folder / tokens_file(number), fill)
    offsets = np.frombuffer(ends, np.int64).astype(OFFSET).tobytes()
    write_whole(folder / documents_file(number), offsets)
    return Shard(ends[-1], len(ends) - 1, text_bytes, checked, checksum([offsets])), place
