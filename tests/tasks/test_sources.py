"""Counting tokens, naming lengths, ending sentences."""

import pytest

from titanslab.data.encode import (
    TokenCounter,
    encode_answer,
    encode_long,
    encoder_of,
    leading_special_tokens,
    load_counter,
)
from titanslab.tasks.sample import TaskSample, derive_seed, length_label, parse_length
from titanslab.tasks.sentences import split_sentences


def test_lengths():
    assert [parse_length(x) for x in ("2k", "1M", "5000", 7)] == [2048, 2**20, 5000, 7]
    assert parse_length("10M", 1000) == 10_000_000
    assert parse_length("0k", 1000) == 0
    assert [length_label(n) for n in (2048, 2**20, 5000, 0)] == ["2k", "1M", "5000", "0k"]
    assert length_label(10_000_000, 1000) == "10M"
    with pytest.raises(ValueError, match="such as 4096, 4k or 1M"):
        parse_length("4kb")


def test_sentences():
    text = 'Mr. J. Smith came at 3 p.m. He said "Go!" Then all went.\n\nCHAPTER II\n\nWhat? Yes'
    assert split_sentences(text) == [
        "Mr. J. Smith came at 3 p.m.", 'He said "Go!"', "Then all went.", "CHAPTER II", "What?", "Yes",
    ]  # fmt: skip
    assert [len(s) for s in split_sentences("word " * 500, max_chars=100)] == [99] * 25
    assert max(len(s) for s in split_sentences("字" * 2500)) == 1000


def test_counts_add_up(bpe, byte, prose):
    sentences = split_sentences(prose)[:50]
    for tokenizer in (bpe, byte, lambda text: len(text.split())):
        counter = TokenCounter(tokenizer)
        total = counter.count(sentences[0]) + sum(counter.count_following(sentences[1:]))
        assert total == counter.count(" ".join(sentences))


def test_counters_by_name(tmp_path, bpe, byte):
    assert load_counter("byte").count("é") == 2
    bpe.save_model(str(tmp_path))
    assert load_counter(tmp_path).count("The old miller") == len(bpe.encode("The old miller").ids)
    byte.save_pretrained(tmp_path / "hf")
    assert load_counter(tmp_path / "hf").count("abc") == 3
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        load_counter("/nowhere/tokenizer.json")


def test_long_texts_are_encoded_in_chunks(bpe, byte, prose):
    text = prose.replace("the", "thé")
    for tokenizer in (bpe, byte):
        whole = encoder_of(tokenizer)(text)
        assert encode_long(tokenizer, text).tolist() == whole
        assert encode_long(tokenizer, text, chunk_chars=101).tolist() == whole
        assert encode_long(tokenizer, "").tolist() == []
    unbroken = "x" * 5000
    assert encode_long(bpe, unbroken, chunk_chars=100).tolist() == bpe.encode(unbroken).ids


def test_answers_are_encoded_as_they_follow(bpe, byte):
    assert byte.decode(encode_answer(byte, "Where?", "here")) == " here"
    whole = bpe.encode("The old miller").ids
    assert encode_answer(bpe, "The old", "miller") == whole[len(bpe.encode("The old").ids) :]
    assert leading_special_tokens(byte) == [byte.bos_token_id]
    assert leading_special_tokens(bpe) == []


def test_seeds_and_samples_are_plain_values():
    assert derive_seed("a", 1) == 9484037261928657086
    assert derive_seed("a", 1) != derive_seed("a1")
    sample = TaskSample("t", 1, 2, "prompt é\n", "x", {"depth": 1.5})
    assert TaskSample.from_json(sample.to_json()) == sample
    assert "\n" not in sample.to_json()
