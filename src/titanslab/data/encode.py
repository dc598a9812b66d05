"""Counting and encoding with whatever tokenizer is at hand."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_ANCHOR = "."


class TokenCounter:
    """Counts tokens with a Hugging Face tokenizer, a `tokenizers.Tokenizer`, or a `text -> int` callable.

    Special tokens are never counted.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._encode = encoder_of(tokenizer)
        self._anchor_count: int | None = None
        if self._encode is None and not callable(tokenizer):
            raise ValueError(
                f"tokenizer is a {type(tokenizer).__name__}; it must be a Hugging Face tokenizer, a "
                "tokenizers.Tokenizer, or a callable that returns the number of tokens of a text"
            )

    def count(self, text: str) -> int:
        """Tokens of `text` on its own."""
        return int(self.tokenizer(text)) if self._encode is None else len(self._encode(text))

    def count_following(self, texts: Sequence[str]) -> list[int]:
        """Tokens each text adds when it follows another after a space, so that counts can be summed."""
        if self._anchor_count is None:
            self._anchor_count = self.count(_ANCHOR)
        joined = [f"{_ANCHOR} {text}" for text in texts]
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if _is_rust(self.tokenizer):
            backend = self.tokenizer
        if _is_rust(backend):
            sizes = [len(e.ids) for e in backend.encode_batch(joined, add_special_tokens=False)]
        else:
            sizes = [self.count(text) for text in joined]
        return [size - self._anchor_count for size in sizes]


def _is_rust(tokenizer: Any) -> bool:
    return type(tokenizer).__module__.partition(".")[0] == "tokenizers" and hasattr(tokenizer, "encode_batch")


def encoder_of(tokenizer: Any) -> Callable[[str], list[int]] | None:
    """`text -> ids` without special tokens, or None where the tokenizer only counts."""
    if _is_rust(tokenizer):
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    if hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode"):
        # verbose=False: no warning that a text is longer than the tokenizer's model_max_length.
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    return None


def encode_long(tokenizer: Any, text: str, chunk_chars: int = 1 << 20) -> np.ndarray:
    """Ids `[T]` of a text of any length, read in chunks that end before a space.

    A tokenizer keeps a hundred bytes and more for each token it reads at once; ten million would not fit.
    """
    encode, parts, start = chunk_encoder(tokenizer), list[np.ndarray](), 0
    while start < len(text) or not parts:
        end = len(text)
        if end - start > chunk_chars:
            space = text.rfind(" ", start + 1, start + chunk_chars)
            end = space if space > 0 else end
        parts.append(encode(text[start:end], start == 0))
        start = end
    return np.concatenate(parts)


def chunk_encoder(tokenizer: Any) -> Callable[[str, bool], np.ndarray]:
    """`(chunk, is first) -> ids int32 [T]` of a text that is cut into chunks before spaces."""
    from titanslab.data.tokenizer import is_byte_tokenizer

    encode = encoder_of(tokenizer)
    if encode is None:
        raise ValueError(f"tokenizer is a {type(tokenizer).__name__}; it must encode text to ids")
    if not _is_rust(tokenizer) and is_byte_tokenizer(tokenizer):
        return lambda chunk, first: np.frombuffer(chunk.encode(), dtype=np.uint8).astype(np.int32)
    anchor = encode(_ANCHOR)

    def encode_chunk(chunk: str, first: bool) -> np.ndarray:
        if first:
            return np.asarray(encode(chunk), dtype=np.int32)
        # after the anchor, so that no tokenizer takes the chunk for the start of a text
        ids = encode(_ANCHOR + chunk)
        return np.asarray(ids[len(anchor) :] if ids[: len(anchor)] == anchor else encode(chunk), dtype=np.int32)

    return encode_chunk


def leading_special_tokens(tokenizer: Any) -> list[int]:
    """What stands before a text: what the tokenizer puts there itself, or else its begin-of-text token.

    A begin-of-text token that also ends texts, as GPT-2's does, is left out.
    """
    encode = encoder_of(tokenizer)
    if encode is None or _is_rust(tokenizer):
        return []
    plain, full = encode("a"), list(tokenizer.encode("a"))
    for start in range(1, len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    begin = tokenizer.bos_token_id
    return [] if begin is None or begin == tokenizer.eos_token_id else [begin]


def encode_answer(tokenizer: Any, question: str, answer: str) -> list[int]:
    """Ids of `answer` where it follows `question` after a space."""
    encode = encoder_of(tokenizer)
    assert encode is not None
    head, full = encode(question), encode(f"{question} {answer}")
    return full[len(head) :] if full[: len(head)] == head else encode(f" {answer}")


def utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode())


def tokenizer_identity(tokenizer: Any) -> str:
    """A name that two tokenizers share where they cut every text in the same way, wherever they lie."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        whole = backend.to_str()
    elif hasattr(tokenizer, "get_vocab"):
        whole = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    else:
        return str(getattr(tokenizer, "__name__", type(tokenizer).__name__))
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:12]


def load_counter(path: str | os.PathLike[str]) -> TokenCounter:
    """A counter from a name.

    Args:
        path: `byte`; a folder with GPT-2's `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`; or
            what `titanslab.data.load_tokenizer` takes.
    """
    if str(path) == "byte":
        return TokenCounter(utf8_bytes)
    where = Path(path)
    for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if (where / vocab).is_file() and (where / merges).is_file() and not (where / "tokenizer.json").is_file():
            from tokenizers import ByteLevelBPETokenizer

            return TokenCounter(ByteLevelBPETokenizer(str(where / vocab), str(where / merges)))
    from titanslab.data.tokenizer import load_tokenizer

    return TokenCounter(load_tokenizer(str(path)))
