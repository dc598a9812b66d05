"""SentencePiece models as fast tokenizers, read from the model file itself: no further package is needed.

A .model file is one protobuf message; only the few fields used here are read from its wire format.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Field numbers of sentencepiece_model.proto.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, UNK_ID, BOS_ID, EOS_ID, PAD_ID = 3, 40, 41, 42, 43
CHARSMAP, DUMMY_PREFIX, REMOVE_EXTRA_SPACES = 2, 3, 4
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = "\u2581"


def sentencepiece_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Turn a SentencePiece unigram or BPE model into a fast tokenizer with the same ids.

    Control pieces such as <s> are special tokens, but text that spells them is read as its letters, as
    SentencePiece does. Raises ValueError when the file is not a SentencePiece model or is of another type.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    try:
        message = _fields(path.read_bytes())
        trainer = _fields(message[TRAINER][0])
        normalizer = _fields(message[NORMALIZER][0]) if NORMALIZER in message else {}
        pieces = [_fields(piece) for piece in message[PIECES]]
        texts = [piece[PIECE_TEXT][0].decode("utf-8") for piece in pieces]
    except (KeyError, IndexError, UnicodeDecodeError, struct.error, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is not a SentencePiece model, or it is cut off") from error
    scores = [_float(piece.get(PIECE_SCORE, [b"\0\0\0\0"])[0]) for piece in pieces]
    types = [piece.get(PIECE_TYPE, [1])[0] for piece in pieces]
    ids = {name: _signed(trainer.get(field, [default])[0]) for name, field, default in _ID_FIELDS}
    kind = trainer.get(MODEL_TYPE, [UNIGRAM])[0]
    model: Any
    byte_fallback = BYTE in types
    symbols = [t for t, k in zip(texts, types, strict=True) if k == USER_DEFINED]
    if kind == UNIGRAM:
        # SentencePiece's own bonus, with which a user-defined symbol always wins over its parts.
        best = max(score for score, k in zip(scores, types, strict=True) if k == NORMAL)
        rows = [
            (t, len(t) * best - 0.1 if k == USER_DEFINED else score)
            for t, score, k in zip(texts, scores, types, strict=True)
        ]
        model = models.Unigram(rows, ids["unk"], byte_fallback)
    elif kind == BPE:
        model = models.BPE(
            {text: index for index, text in enumerate(texts)},
            _merges(texts, scores, types),
            unk_token=texts[ids["unk"]],
            fuse_unk=True,
            byte_fallback=byte_fallback,
            ignore_merges=bool(symbols),
        )
    else:
        raise ValueError(f"{str(path)!r} is a SentencePiece model of type {kind}; only unigram and BPE can be read")
    backend = Tokenizer(model)
    prefix = bool(normalizer.get(DUMMY_PREFIX, [1])[0])
    squeeze = bool(normalizer.get(REMOVE_EXTRA_SPACES, [1])[0])
    backend.normalizer = _normalizer(normalizer.get(CHARSMAP, [b""])[0], prefix, squeeze)
    backend.decoder = _decoder(prefix)
    cuts = [re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True)] if kind == BPE else []
    if kind == UNIGRAM:
        # The search would find the text "<s>" among the pieces; cut it so that only letters are left.
        reserved = [t for t, k in zip(texts, types, strict=True) if k in (UNKNOWN, CONTROL) and len(t) > 1]
        cuts = [f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in reserved]
    if cuts:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(cuts)), "isolated")
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, k in zip(texts, types, strict=True) if k == CONTROL]
    )
    special = {f"{name}_token": texts[index] for name, index in ids.items() if 0 <= index < len(texts)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, split_special_tokens=True, **special
    )


_ID_FIELDS = (("unk", UNK_ID, 0), ("bos", BOS_ID, 1), ("eos", EOS_ID, 2), ("pad", PAD_ID, -1))


def _normalizer(charsmap: bytes, prefix: bool, squeeze: bool) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(prefix: bool) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _merges(texts: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """The merge list that a BPE model's scores imply: better pieces are made first."""
    rank = {text: index for index, text in enumerate(texts) if types[index] not in (CONTROL, BYTE)}
    merges = []
    for text, index in rank.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in rank and right in rank:
                merges.append((-scores[index], rank[left], rank[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Read one protobuf message: field number -> its values, as int (varint) or bytes (everything else)."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        else:
            if wire == 2:
                size, at = _varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise IndexError(f"wire type {wire}")
            if at + size > len(data):
                raise IndexError("message ends early")
            value, at = data[at : at + size], at + size
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _float(value: bytes) -> float:
    return struct.unpack("<f", value)[0]
