"""The letters of DNA, their tokenizer, and the two ways to ids: the tokenizer itself and a table."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from titanslab.data import TextEncoder, load_tokenizer
from titanslab.data.dna.alphabet import NotDNA, clean, ids_of, reverse_complement, reverse_complement_ids


def test_letters_are_folded_and_others_are_unknown():
    assert clean(b"acgu\r\nTRYkn-.x A", "x") == "ACGTTNNNNNNNA"
    with pytest.raises(NotDNA, match=r"^here holds 'E' at place 3, which is no nucleotide"):
        clean(b"AC\nE", "here")
    with pytest.raises(NotDNA, match="holds 'é' at place 2"):
        clean("Aé".encode(), "here")


def test_reverse_complement_of_letters_and_ids():
    assert reverse_complement("AACGTN") == "NACGTT"
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("ACGTN"), 50))
    ids = ids_of(letters)
    assert ids.dtype == np.uint8
    assert (reverse_complement_ids(ids) == ids_of(reverse_complement(letters))).all()
    rows = torch.from_numpy(ids.astype(np.int64)).view(2, 25)
    assert reverse_complement_ids(rows).tolist() == [reverse_complement_ids(row.numpy()).tolist() for row in rows]
    assert reverse_complement_ids(torch.tensor([5, 0, 4, 6])).tolist() == [6, 4, 3, 5]


def test_tokenizer_is_opened_by_name_and_saved_as_any_other(tmp_path):
    tokenizer = load_tokenizer("dna")
    assert tokenizer("acgtNrU\n").input_ids == [0, 1, 2, 3, 4, 4, 3]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (5, 6, 7, 8)
    assert tokenizer.decode([0, 1, 2, 3, 4]) == "ACGTN"
    assert 5 not in tokenizer("<bos>").input_ids
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("acgtRu").input_ids == [0, 1, 2, 3, 4, 3]
    assert TextEncoder(load_tokenizer(str(tmp_path))).is_dna


def test_encoder_gives_the_ids_of_the_tokenizer_and_names_wrong_letters():
    tokenizer = load_tokenizer("dna")
    encoder = TextEncoder(tokenizer)
    rng = np.random.default_rng(1)
    text = "".join(rng.choice(list("ACGTUNacgtunRYkm-\n"), 120_000))
    assert encoder.is_dna
    assert encoder.encode([text])[0].tolist() == tokenizer(text).input_ids
    parts = encoder.parts(text.replace("\n", ""))
    assert len(parts) == 2
    assert encoder.documents([text.replace("\n", "")])[0].tolist() == [5, *tokenizer(text).input_ids, 6]
    with pytest.raises(ValueError, match="the text 'hello' holds 'e' at place 2, which is no nucleotide"):
        encoder.encode(["hello"])
