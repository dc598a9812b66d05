"""The tokens of a corpus with the start of each document, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titanslab.data.corpus import Corpus
from titanslab.data.encode import TextEncoder
from titanslab.data.pieces import pieces
from titanslab.data.shards import FORMAT, MANIFEST, ShardedTokens, read_manifest
from titanslab.data.write_shards import SHARD_TOKENS, begin, write_shards
from titanslab.documents import reason
from titanslab.files import remove_whole
from titanslab.locks import only_writer
from titanslab.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus in memory; `ShardedTokens` has the same methods.

    Args:
        ids: [N], the documents end to end, each between the tokenizer's start and end token.
        offsets: [number of documents + 1]; the i-th document is ids[offsets[i]:offsets[i + 1]].
        text_bytes: size of the text in UTF-8.
    """

    ids: np.ndarray
    offsets: np.ndarray
    text_bytes: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    def piece(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids [stop - start] of a part of all tokens, and the number of the document of each, both int64."""
        ids = np.asarray(self.ids[start:stop]).astype(np.int64)
        return ids, np.searchsorted(self.offsets, np.arange(start, start + len(ids)), side="right") - 1

    def lengths(self) -> np.ndarray:
        """The number of tokens of each document, int64 [documents]."""
        return np.diff(self.offsets)


def tokenize(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: Path | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    patience: float = 0.0,
) -> Tokens | ShardedTokens:
    """Tokenise a corpus.

    A process that finds another one at work on the same tokens waits and reads them from the cache. A cache that is
    damaged is made again, and a warning says so; one whose writer was killed is finished.

    Args:
        cache: a folder in which the result is kept and from which it is read the next time; None = in memory alone.
        processes: that encode, see `titanslab.data.pool.encoded`.
        progress: called with the amount done and in all, in `corpus.unit`, while text is encoded.
        patience: seconds that another process has to begin with the same tokens before this one does.

    Raises:
        ValueError: the corpus holds no text.
    """
    encoder = TextEncoder(tokenizer)
    folder = None if cache is None else _cache_folder(cache, corpus, tokenizer)
    if folder is None:
        return _in_memory(corpus, encoder, processes, progress)
    if (kept := _usable(folder, corpus.name, alone=False)) is not None:
        return kept
    time.sleep(patience)
    waiting: Progress = progress or (lambda *_: None)
    with only_writer(folder, "token cache", waiting=lambda busy: waiting(0, None, f"waiting: {busy}")):
        # another process may have written it meanwhile
        if (kept := _usable(folder, corpus.name, alone=True)) is not None:
            return kept
        manifest = (
            read_manifest(folder) if folder.exists() else begin(folder, encoder, SHARD_TOKENS, keep_tokenizer=False)
        )
        try:
            write_shards(folder, manifest, corpus, encoder, processes=processes, progress=progress)
        except BaseException:
            if not manifest.shards:
                remove_whole(folder)
            raise
        return ShardedTokens(folder, corpus.name)


def _usable(folder: Path, name: str, alone: bool) -> ShardedTokens | None:
    """The tokens in a cache, if it is finished and whole; a damaged one is removed by a process that is `alone`."""
    if not os.path.lexists(folder):
        return None
    try:
        if read_manifest(folder).unfinished is not None:
            return None
        kept = ShardedTokens(folder, name)
        kept.check()
        return kept
    except PermissionError:
        raise
    except Exception as error:  # of any library that reads the files
        if alone:
            said = f"the tokens in {folder} are damaged and are made again: {reason(error, 200)}"
            warnings.warn(said, stacklevel=3)
            remove_whole(folder)
    return None


def _in_memory(corpus: Corpus, encoder: TextEncoder, processes: int, progress: Progress | None) -> Tokens:
    """`tokenize` without a cache."""
    parts, ends, text_bytes, total = list[np.ndarray](), [0], 0, 0
    for piece in pieces(corpus, encoder, processes=processes, progress=progress):
        parts.append(piece.ids)
        total += len(piece.ids)
        text_bytes += piece.text_bytes
        if piece.end is not None:
            ends.append(total)
    if not total:
        raise ValueError(corpus.describe_empty())
    return Tokens(np.concatenate(parts), np.array(ends, np.int64), text_bytes)


def _cache_folder(cache: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Path | None:
    content = corpus.fingerprint()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if content is None or backend is None:
        return None
    key: list[Any] = [
        MANIFEST,
        FORMAT,
        content,
        backend.to_str(),
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        bool(tokenizer.split_special_tokens),
    ]
    return cache / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
