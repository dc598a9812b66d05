"""The letters of DNA: which are read, as which, their ids, and the reverse complement of letters and of ids."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

BASES = "ACGT"  # ids 0 to 3
UNKNOWN = "N"  # id 4
AMBIGUOUS = "RYSWKMBDHVX-.*"  # IUPAC's other letters and the signs of gaps: read as N
SPACE = b" \t\r\n\f\v"

# The letter that each byte is read as; 0 for a byte that is no nucleotide.
_READ = {ord(letter): letter for letter in BASES + UNKNOWN} | {ord("U"): "T"} | {ord(x): UNKNOWN for x in AMBIGUOUS}
_READ |= {ord(chr(byte).lower()): letter for byte, letter in _READ.items()}
LETTER_OF = bytes(ord(_READ.get(byte, "\0")) for byte in range(256))
# The id of each of the letters ACGTN.
ID_OF = np.zeros(256, np.uint8)
ID_OF[[ord(letter) for letter in BASES + UNKNOWN]] = range(5)
_COMPLEMENT = str.maketrans("ACGTN", "TGCAN")

Ids = TypeVar("Ids")


class NotDNA(ValueError):
    """A text holds a character that is no nucleotide."""


def clean(data: bytes, where: str, before: int = 0) -> str:
    """The letters ACGTN of a sequence: case folded, U as T, other IUPAC letters and gaps as N, white space left out.

    Raises:
        NotDNA: a character is no nucleotide. The message begins with `where`, and its place counts letters from 1,
            after those `before` this part of a sequence.
    """
    letters = data.translate(LETTER_OF, SPACE)
    if b"\0" in letters:
        place = next(i for i, byte in enumerate(data) if not LETTER_OF[byte] and byte not in SPACE)
        character = data[place : place + 4].decode("utf-8", "replace")[0]
        place = before + len(data[:place].translate(None, SPACE))
        raise NotDNA(
            f"{where} holds {character!r} at place {place + 1}, which is no nucleotide; letters are A, C, G, T, U, N "
            f"and IUPAC's {AMBIGUOUS[:10]}, in either case, and - . * for gaps"
        )
    return letters.decode("ascii")


def clean_text(text: str, where: str) -> str:
    """`clean` of a text."""
    return clean(text.encode("utf-8", "replace"), where)


def ids_of(letters: str) -> np.ndarray:
    """The ids, uint8 [T], of the letters ACGTN: A 0, C 1, G 2, T 3, N 4."""
    return ID_OF[np.frombuffer(letters.encode("ascii"), np.uint8)]


def reverse_complement(letters: str) -> str:
    """The other strand of the letters ACGTN, in its own direction."""
    return letters.translate(_COMPLEMENT)[::-1]


def reverse_complement_ids(ids: Ids) -> Ids:
    """The ids of the other strand, of an array or a tensor [..., T]; ids above 3 keep their value.

    The last dimension is reversed. Padding therefore changes sides: apply it to sequences without padding.
    """
    if isinstance(ids, np.ndarray):
        flipped = ids[..., ::-1]
        return np.where(flipped < 4, 3 - flipped, flipped).astype(ids.dtype)  # type: ignore[return-value]
    tensor: Any = ids
    flipped = tensor.flip(-1)
    return (3 - flipped).where(flipped < 4, flipped)
