"""Making a tokenizer from texts: byte-level BPE, the same one for the same texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from titanslab.data.corpus import Corpus

PREFIX = "bpe:"
SLIP = re.compile(r"bpe[-_=]?\d+")
SMALLEST = 260  # the bytes, <bos>, <eos>, <pad>, and one piece
TEXT_CHARS = 20_000_000  # most characters of a corpus that are read
PIECE_CHARS = 2000


def bpe_size(name: str) -> int | None:
    """The number of tokens that `bpe:2048` asks for; None for another kind of name, ValueError for a wrong number."""
    if not name.startswith(PREFIX):
        if SLIP.fullmatch(name):
            raise ValueError(f"tokenizer {name!r} is not of the form bpe:N; write bpe:{name.lstrip('bpe-_=')}")
        return None
    text = name.removeprefix(PREFIX)
    if not text.isdecimal():
        raise ValueError(f"tokenizer {name!r} is not of the form bpe:N, such as bpe:2048")
    check_size(int(text), f"tokenizer {name!r}: N")
    return int(text)


def check_size(vocabulary: int, name: str) -> None:
    """Raise ValueError for a vocabulary that has no room for the bytes; `name` is how the message calls it."""
    if vocabulary < SMALLEST:
        raise ValueError(f"{name} must be {SMALLEST} or more, for 256 bytes and 3 special tokens; got {vocabulary}")


def train_bpe(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer whose pieces are the most frequent ones of `texts`.

    It encodes any text and decodes it exactly. <bos> 0 starts a text, <eos> 1 ends it, <pad> 2 fills rows. Each digit
    is a token, so that numbers can be copied digit by digit.

    Args:
        texts: read once; long ones are cut into parts of 2,000 characters.
        vocabulary: the number of tokens, special ones included; a small text may give fewer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    check_size(vocabulary, "vocabulary")
    tokenizer: Any = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in _parts(text)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def corpus_bpe(corpus: Corpus, vocabulary: int, characters: int = TEXT_CHARS) -> PreTrainedTokenizerBase:
    """The tokenizer of `train_bpe` for a corpus, of which at most `characters` are read, as many of each file.

    Raises ValueError for a corpus without text.
    """
    texts = corpus.beginnings(characters)
    if (first := next(texts, None)) is None:
        raise ValueError(corpus.describe_empty())
    return train_bpe(chain([first], texts), vocabulary)


def _parts(text: str) -> Iterator[str]:
    return (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))
