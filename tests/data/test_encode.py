"""Counting and encoding: the same ids whole, in batches and in chunks, with every kind of tokenizer."""

import pytest
from transformers import PreTrainedTokenizerFast

from titanslab.data import TextEncoder, byte_tokenizer
from titanslab.data.encode import (
    TextDecoder,
    TokenCounter,
    encode_answer,
    encode_long,
    leading_special_tokens,
    load_counter,
)


@pytest.fixture(scope="module")
def prose():
    places = ("bridge", "mill", "market", "river")
    return " ".join(f"The old miller sold {i} apples at the {places[i % 4]}, then said nothing." for i in range(300))


@pytest.fixture(scope="module")
def bpe(prose):
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([prose], vocab_size=600, show_progress=False)
    return tokenizer


@pytest.fixture(scope="module")
def byte():
    return byte_tokenizer()


def test_counts_add_up(bpe, byte, prose):
    sentences = [f"{part}." for part in prose.split(". ")[:50]]
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
        whole = TextEncoder(tokenizer).ids(text)
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


def test_one_encoder_for_texts_documents_and_chunks(bpe, byte):
    for tokenizer in (bpe, byte):
        encoder = TextEncoder(tokenizer)
        texts = ["The old miller", "", "<bos> é"]
        assert [ids.tolist() for ids in encoder.encode(texts)] == [encoder.ids(text) for text in texts]
        end = [] if encoder.eos is None else [encoder.eos]
        assert encoder.documents(texts)[0].tolist() == [*encoder.start, *encoder.ids(texts[0]), *end]
        assert encoder.chunk(" miller", False).tolist() == encoder.ids("The old miller")[len(encoder.ids("The old")) :]
    assert TextEncoder(byte).start == [byte.bos_token_id]
    assert TextEncoder(bpe).start == []
    with pytest.raises(ValueError, match="builtin_function_or_method; it must encode text"):
        TextEncoder(len)


def test_a_decoder_gives_the_text_of_whole_characters(bpe, byte):
    text = "aé漢🎉 the mill <bos>"
    for tokenizer in (PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer), byte):
        decoder = TextDecoder(tokenizer)
        parts = [decoder.add([token]) for token in TextEncoder(tokenizer).ids(text)]
        assert "".join(parts) + decoder.rest() == text
        assert all("\ufffd" not in part for part in parts)
    decoder = TextDecoder(byte)
    assert [decoder.add([token]) for token in (0xE6, 0xBC)] == ["", ""]
    assert decoder.rest().startswith("\ufffd")
    assert TextDecoder(byte, skip_special_tokens=True).add([257, 97]) == "a"
