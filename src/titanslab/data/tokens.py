"""The tokens of a corpus in one flat array with the start of each document, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from titanslab.data.corpus import Corpus
from titanslab.data.encode import TextEncoder
from titanslab.documents import read_json
from titanslab.files import write_whole
from titanslab.locks import only_writer
from titanslab.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARACTERS = 2_000_000
FORMAT_VERSION = 1


class _Text(Struct):
    text_bytes: Annotated[int, Meta(ge=0)]


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
    """
    report: Progress = progress or (lambda *_: None)
    folder = None if cache is None else _cache_folder(cache, corpus, tokenizer)
    if folder is None:
        return _encode(corpus, tokenizer, report)
    if folder.exists():
        return _read(folder)
    with only_writer(folder, "token cache", waiting=lambda busy: report(0, None, f"waiting: {busy}")):
        if folder.exists():  # another process has written it meanwhile
            return _read(folder)
        tokens = _encode(corpus, tokenizer, report)
        _write(folder, tokens)
        return tokens


def _encode(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, report: Progress) -> Tokens:
    """`tokenize` without a cache."""
    encoder = TextEncoder(tokenizer)
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


def _read(folder: Path) -> Tokens:
    ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
    offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    return Tokens(ids, offsets, read_json(folder / "text.json", _Text).text_bytes)


def _write(folder: Path, tokens: Tokens) -> None:
    def fill(temporary: Path) -> None:
        temporary.mkdir()
        np.save(temporary / "ids.npy", tokens.ids, allow_pickle=False)
        np.save(temporary / "offsets.npy", tokens.offsets, allow_pickle=False)
        (temporary / "text.json").write_text(json.dumps({"text_bytes": tokens.text_bytes}))

    write_whole(folder, fill)
