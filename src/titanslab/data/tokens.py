"""The tokens of a corpus in one flat array with the start of each document, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from titanslab.data.corpus import Corpus
from titanslab.data.encode import TextEncoder
from titanslab.documents import read_json
from titanslab.files import checksum, write_whole
from titanslab.locks import only_writer
from titanslab.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARACTERS = 2_000_000
FORMAT_VERSION = 1
IDS, OFFSETS, TEXT = "ids.npy", "offsets.npy", "text.json"


class _Text(Struct):
    text_bytes: Annotated[int, Meta(ge=0)]
    checksum: str | None = None  # of `_checksum`; caches of before have none


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus.

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


def tokenize(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, cache: Path | None = None, progress: Progress | None = None
) -> Tokens:
    """Tokenise a corpus.

    Args:
        cache: a folder in which the result is kept and from which it is read the next time; None = no cache.
        progress: called with the bytes of files done and in all.

    Raises:
        ValueError: the corpus holds no text.

    A process that finds another one at work on the same tokens waits and reads them from the cache.

    A cache that is damaged is made again, and a warning says so; one of an earlier release, without a checksum, is
    checked as far as it can be and used with a warning.
    """
    encoder = TextEncoder(tokenizer)
    report: Progress = progress or (lambda *_: None)
    folder = None if cache is None else _cache_folder(cache, corpus, tokenizer)
    if folder is None:
        return _encode(corpus, encoder, report)
    if (kept := _usable(folder, encoder, tokenizer, alone=False)) is not None:
        return kept
    with only_writer(folder, "token cache", waiting=lambda busy: report(0, None, f"waiting: {busy}")):
        # another process may have written it meanwhile
        if (kept := _usable(folder, encoder, tokenizer, alone=True)) is not None:
            return kept
        tokens = _encode(corpus, encoder, report)
        _write(folder, tokens)
        return tokens


def _usable(folder: Path, encoder: TextEncoder, tokenizer: PreTrainedTokenizerBase, alone: bool) -> Tokens | None:
    """The tokens in a cache, if it is there and whole; a damaged one is removed by a process that is `alone`."""
    if not os.path.lexists(folder):
        return None
    kept, said = _kept(folder, encoder.dtype, len(tokenizer))
    if said and (alone or kept is not None):
        warnings.warn(said, stacklevel=3)
    if kept is None and alone:
        _remove(folder)
    return kept


def _encode(corpus: Corpus, encoder: TextEncoder, report: Progress) -> Tokens:
    """`tokenize` without a cache."""
    parts, text_bytes = list[np.ndarray](), 0
    total = sum(path.stat().st_size for path in corpus.files) or None  # none for the hub
    before = 0
    report(0, total)
    for place, texts in corpus.batches(BATCH_CHARACTERS):
        parts += encoder.documents(texts, partial(_report_share, report, before, place, total))
        text_bytes += sum(len(text.encode("utf-8")) for text in texts)
        before = place
    if not parts:
        raise ValueError(corpus.describe_empty())
    return Tokens(np.concatenate(parts), np.cumsum([0, *map(len, parts)], dtype=np.int64), text_bytes)


def _report_share(report: Progress, start: float, end: float, total: float | None, share: float) -> None:
    report(start + share * (end - start), total)


def _cache_folder(cache: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Path | None:
    content = corpus.fingerprint()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if content is None or backend is None:
        return None
    key: list[Any] = [FORMAT_VERSION, content, backend.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return cache / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _checksum(tokens: Tokens) -> str:
    """Checksum of ids, offsets and number of bytes."""
    facts = [str(tokens.ids.dtype), len(tokens.ids), len(tokens.offsets), tokens.text_bytes]
    arrays = (np.ascontiguousarray(array).view(np.uint8).data for array in (tokens.ids, tokens.offsets))
    return checksum([json.dumps(facts).encode(), *arrays])


def _kept(folder: Path, dtype: np.dtype, vocab_size: int) -> tuple[Tokens | None, str]:
    """The tokens in a cache, None where they are damaged, and a remark about them."""
    try:
        tokens, proved = _read(folder, dtype, vocab_size)
    except PermissionError:
        raise
    except Exception as error:  # of any library that reads the files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return None, f"the tokens in {folder} are damaged and are made again: {reason}"
    remark = f"the tokens in {folder} carry no checksum: an earlier release wrote them; deleted, they are made again"
    return tokens, "" if proved else remark


def _read(folder: Path, dtype: np.dtype, vocab_size: int) -> tuple[Tokens, bool]:
    """The tokens in a cache, and whether a checksum proves them; an exception of any kind where they are damaged."""
    ids, offsets = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (IDS, OFFSETS))
    text = read_json(folder / TEXT, _Text)
    for name, array, wanted in ((IDS, ids, dtype), (OFFSETS, offsets, np.dtype(np.int64))):
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != wanted:
            got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} holds {got}, and one dimension of {wanted} is needed")
    tokens = Tokens(ids, np.array(offsets), text.text_bytes)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(tokens.offsets) < 0).any():
        raise ValueError(f"{OFFSETS} does not cut the {len(ids):,} ids of {IDS} into documents")
    if text.checksum is None:
        if len(ids) and (largest := int(ids.max())) >= vocab_size:
            raise ValueError(f"{IDS} holds the id {largest}, and the tokenizer has {vocab_size}")
    elif text.checksum != _checksum(tokens):
        raise ValueError("they do not agree with their checksum")
    return tokens, text.checksum is not None


def _remove(folder: Path) -> None:
    """Remove a damaged cache; a temporary name of `write_whole` first, so that nobody finds a part of it."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        os.replace(folder, aside)
    except FileNotFoundError:  # another process was faster
        return
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def _write(folder: Path, tokens: Tokens) -> None:
    def fill(temporary: Path) -> None:
        temporary.mkdir()
        np.save(temporary / IDS, tokens.ids, allow_pickle=False)
        np.save(temporary / OFFSETS, tokens.offsets, allow_pickle=False)
        (temporary / TEXT).write_text(json.dumps({"text_bytes": tokens.text_bytes, "checksum": _checksum(tokens)}))

    write_whole(folder, fill)
