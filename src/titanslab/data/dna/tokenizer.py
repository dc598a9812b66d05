"""The tokenizer of nucleotides, a Hugging Face fast tokenizer: A, C, G, T, N and three special tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from titanslab.data.dna.alphabet import BASES, UNKNOWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DNA = "dna"
VOCABULARY = {letter: number for number, letter in enumerate(BASES + UNKNOWN)}


def dna_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of nucleotides: A 0, C 1, G 2, T 3, N 4, then `<bos>` 5, `<eos>` 6, `<pad>` 7.

    A letter is a token. Case is folded, U is read as T, white space is left out, and every other character is N. It is
    saved and loaded as a Hugging Face fast tokenizer, without code of this package.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    folded = [normalizers.Replace(lower, upper) for lower, upper in zip("acgtuU", "ACGTTT", strict=True)]
    backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), ""), *folded])
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def is_dna_tokenizer(tokenizer: Any) -> bool:
    """Whether a letter of ACGTN is its own token for this tokenizer, with the ids of `dna_tokenizer`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(tokenizer) > 64:
        return False
    made = json.loads(backend.to_str())
    plain = all(token["special"] for token in made["added_tokens"])
    return plain and made["model"].get("merges") == [] and made["model"].get("vocab") == VOCABULARY
