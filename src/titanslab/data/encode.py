"""From text to ids and to numbers of tokens, with any tokenizer."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data.corpus import in_groups
from titanslab.data.dna.alphabet import clean_text, ids_of
from titanslab.data.dna.tokenizer import is_dna_tokenizer
from titanslab.data.tokenizer import is_byte_tokenizer, load_tokenizer

_ANCHOR = "."
_LONGEST_CHARACTER = 8  # tokens
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
PART_CHARACTERS = 100_000  # of a long text that is encoded in parts
GROUP_CHARACTERS = 500_000  # encoded together, in parallel


class TextEncoder:
    """Encodes texts with one tokenizer, into the smallest integer type that holds its ids.

    Args:
        tokenizer: a Hugging Face tokenizer or a `tokenizers.Tokenizer`; another raises a ValueError.

    Attributes:
        bos: the tokenizer's start token, None where it has none.
        eos: its end token, None where it has none.
        start: the ids before a text that is read from its beginning: the start token, or none.
        end: the ids after a whole text: the end token, or none.
        is_bytes: whether token b is byte b, so that the tokenizer need not run.
        is_dna: whether a nucleotide is a token, so that the tokenizer need not run; other letters raise a ValueError.
        by_table: whether either holds.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not _encodes(tokenizer):
            raise ValueError(f"tokenizer is a {type(tokenizer).__name__}; it must encode text to ids")
        self.tokenizer = tokenizer
        self.bos: int | None = getattr(tokenizer, "bos_token_id", None)
        self.eos: int | None = getattr(tokenizer, "eos_token_id", None)
        self.start = [] if self.bos is None else [self.bos]
        self.end = [] if self.eos is None else [self.eos]
        size = tokenizer.get_vocab_size() if _is_rust(tokenizer) else len(tokenizer)
        self.dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
        self.is_bytes = is_byte_tokenizer(tokenizer)
        self.is_dna = is_dna_tokenizer(tokenizer)
        self.by_table = self.is_bytes or self.is_dna

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids [T] of each text, without special tokens."""
        if self.is_bytes:
            return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(self.dtype) for text in texts]
        if self.is_dna:
            return [ids_of(clean_text(text, f"the text {text[:20]!r}")).astype(self.dtype) for text in texts]
        if _is_rust(self.tokenizer):
            # without the places of tokens in the text, where the class has that
            encode = getattr(self.tokenizer, "encode_batch_fast", self.tokenizer.encode_batch)
            rows = [e.ids for e in encode(list(texts), add_special_tokens=False)]
        else:  # verbose=False: no warning that a text is longer than the tokenizer's model_max_length
            options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
            rows = self.tokenizer(list(texts), **options)["input_ids"] if texts else []
        return [np.asarray(ids, self.dtype) for ids in rows]

    def documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids [T] of each text between the tokenizer's start and end token, where it has them."""
        parts = [self.parts(text) for text in texts]
        groups = in_groups(chain.from_iterable(parts), GROUP_CHARACTERS)
        ids = chain.from_iterable(self.encode(group) for group in groups)
        return [
            np.concatenate([self.start, *islice(ids, len(of_text)), self.end]).astype(self.dtype) for of_text in parts
        ]

    def parts(self, text: str) -> list[str]:
        """Parts of a text whose ids, end to end, are those of the text; the text itself if that is not certain."""
        if len(text) > PART_CHARACTERS and self.is_dna:
            return [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
        if len(text) <= PART_CHARACTERS or not self._splits_before_spaces:
            return [text]
        parts, start = list[str](), 0
        while cut := _BETWEEN_WORDS.search(text, start + PART_CHARACTERS):
            parts.append(text[start : cut.start()])
            start = cut.start()
        return [*parts, text[start:]]

    @cached_property
    def _splits_before_spaces(self) -> bool:
        """Whether no token reaches from a letter over the space after it: byte-level BPE with GPT-2's pattern."""
        backend = getattr(self.tokenizer, "backend_tokenizer", self.tokenizer)
        if self.is_bytes or not _is_rust(backend):
            return False
        made = json.loads(backend.to_str())
        steps = made["pre_tokenizer"] or {}
        steps = steps.get("pretokenizers", [steps])
        return (
            made["normalizer"] is None
            and made["model"]["type"] == "BPE"
            and made["model"].get("dropout") is None
            and any(step.get("type") == "ByteLevel" for step in steps)
            and all(
                step.get("type") == "Digits" or (step.get("use_regex") and not step.get("add_prefix_space"))
                for step in steps
            )
            and not any(t["lstrip"] or t["rstrip"] or " " in t["content"] for t in made["added_tokens"])
        )

    def ids(self, text: str) -> list[int]:
        """The ids of one text, without special tokens."""
        return self.encode([text])[0].tolist()

    @cached_property
    def _anchor(self) -> list[int]:
        return self.ids(_ANCHOR)

    def chunk(self, text: str, first: bool) -> np.ndarray:
        """The ids [T] of one chunk of a longer text that is cut before spaces; `first` is that text's beginning."""
        if first or self.by_table:
            return self.encode([text])[0]
        # after the anchor, so that no tokenizer takes the chunk for the start of a text
        ids = self.encode([_ANCHOR + text])[0]
        size = len(self._anchor)
        return ids[size:] if ids[:size].tolist() == self._anchor else self.encode([text])[0]


class TextDecoder:
    """Decodes tokens as they come; a character of several tokens is part of its last one's text.

    Args:
        tokenizer: an object with `decode(ids, **options)`.
        skip_special_tokens: whether special tokens have no text.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = False) -> None:
        self.tokenizer = tokenizer
        self.options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        self._before: list[int] = []  # context: some tokenizers drop the space that a text begins with
        self._waiting: list[int] = []

    def add(self, ids: Sequence[int]) -> str:
        """The text that new tokens complete; empty while a character lacks tokens."""
        self._waiting += ids
        text = self._new_text()
        if text.endswith("\ufffd") and len(self._waiting) < _LONGEST_CHARACTER:
            return ""
        self._before, self._waiting = (self._before + self._waiting)[-_LONGEST_CHARACTER:], []
        while self._before and self._decode(self._before)[:1] == "\ufffd":
            self._before = self._before[1:]
        return text

    def rest(self) -> str:
        """The text of tokens whose last character is incomplete."""
        text, self._waiting = self._new_text(), []
        return text

    def _new_text(self) -> str:
        known, whole = self._decode(self._before), self._decode(self._before + self._waiting)
        return whole[len(known) :] if whole.startswith(known) else self._decode(self._waiting)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, **self.options))


def encode_long(tokenizer: Any, text: str, chunk_chars: int = 1 << 20) -> np.ndarray:
    """The ids [T] of a text of any length, encoded in chunks that end before a space.

    A tokenizer keeps a hundred bytes and more for each token of a call; ten million would not fit.
    """
    encoder, parts, start = TextEncoder(tokenizer), list[np.ndarray](), 0
    while start < len(text) or not parts:
        end = len(text)
        if end - start > chunk_chars:
            space = text.rfind(" ", start + 1, start + chunk_chars)
            end = space if space > 0 else end
        parts.append(encoder.chunk(text[start:end], start == 0))
        start = end
    return np.concatenate(parts)


class TokenCounter:
    """Counts tokens, never special ones.

    Args:
        tokenizer: a Hugging Face tokenizer, a `tokenizers.Tokenizer`, or a callable `text -> int`.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer) if _encodes(tokenizer) else None
        if self._encoder is None and not callable(tokenizer):
            raise ValueError(
                f"tokenizer is a {type(tokenizer).__name__}; it must be a Hugging Face tokenizer, a "
                "tokenizers.Tokenizer, or a callable that returns the number of tokens of a text"
            )

    def count(self, text: str) -> int:
        """Tokens of `text` on its own."""
        return self._counts([text])[0]

    def count_following(self, texts: Sequence[str]) -> list[int]:
        """Tokens that each text adds where it follows another after a space, so that counts can be summed."""
        return [size - self._anchor for size in self._counts([f"{_ANCHOR} {text}" for text in texts])]

    @cached_property
    def _anchor(self) -> int:
        return self.count(_ANCHOR)

    def _counts(self, texts: Sequence[str]) -> list[int]:
        if self._encoder is None:
            return [int(self.tokenizer(text)) for text in texts]
        return [len(ids) for ids in self._encoder.encode(texts)]


def _is_rust(tokenizer: Any) -> bool:
    return type(tokenizer).__module__.partition(".")[0] == "tokenizers" and hasattr(tokenizer, "encode_batch")


def _encodes(tokenizer: Any) -> bool:
    return _is_rust(tokenizer) or (hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode"))


def leading_special_tokens(tokenizer: Any) -> list[int]:
    """The ids before a text: those that the tokenizer adds itself, or else its begin-of-text token.

    A begin-of-text token that also ends texts, as GPT-2's does, is left out.
    """
    encoder = TextEncoder(tokenizer)
    if _is_rust(tokenizer):
        return []
    plain, full = encoder.ids("a"), list(tokenizer.encode("a"))
    for start in range(1, len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return [] if encoder.bos == encoder.eos else encoder.start


def encode_answer(tokenizer: Any, question: str, answer: str) -> list[int]:
    """Ids of `answer` where it follows `question` after a space."""
    encode = TextEncoder(tokenizer).ids
    head, full = encode(question), encode(f"{question} {answer}")
    return full[len(head) :] if full[: len(head)] == head else encode(f" {answer}")


def utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode())


def tokenizer_identity(tokenizer: Any) -> str:
    """A name that two tokenizers share where they cut every text in the same way, wherever their files are."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        whole = backend.to_str()
    elif hasattr(tokenizer, "get_vocab"):
        whole = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    else:
        return str(getattr(tokenizer, "__name__", type(tokenizer).__name__))
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:12]


def load_counter(path: str | os.PathLike[str]) -> TokenCounter:
    """The counter of the tokenizer `path`: `byte`, a folder with GPT-2's files, or a name that `load_tokenizer` takes.

    GPT-2's files are `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`.
    """
    if str(path) == "byte":
        return TokenCounter(utf8_bytes)
    where = Path(path)
    for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if (where / vocab).is_file() and (where / merges).is_file() and not (where / "tokenizer.json").is_file():
            from tokenizers import ByteLevelBPETokenizer

            return TokenCounter(ByteLevelBPETokenizer(str(where / vocab), str(where / merges)))
    return TokenCounter(load_tokenizer(str(path)))
