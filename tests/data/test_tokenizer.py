"""Tokenizers: bytes exactly, Hugging Face files, SentencePiece without its package."""

import io
import time

import pytest
import sentencepiece
from transformers import AutoTokenizer

from titanslab.data import TextEncoder, byte_tokenizer, is_byte_tokenizer, load_tokenizer

TEXTS = [
    "plain words, two  spaces and a tab\t.",
    "line\r\nends\n\n\0null",
    "é 漢字 🎉 \u2028 \ufeff",
    "<bos> is text, so are </s> <|endoftext|> and <pad>",
    " leading and trailing ",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back_exactly(text, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        ids = one(text)["input_ids"]
        assert ids == list(text.encode())
        assert one.decode(ids) == text


def test_byte_tokenizer_has_start_end_and_padding_beyond_the_bytes():
    tokenizer = byte_tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)
    assert len(tokenizer) == 259
    assert tokenizer.decode([256, 104, 105, 257], skip_special_tokens=True) == "hi"


def test_encoder_takes_bytes_directly_and_gives_the_tokenizers_ids():
    tokenizer = byte_tokenizer()
    assert is_byte_tokenizer(tokenizer)
    encoder = TextEncoder(tokenizer)
    for text, ids in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert ids.tolist() == tokenizer(text)["input_ids"]
    assert encoder.documents(["ab"])[0].tolist() == [256, 97, 98, 257]
    start = time.perf_counter()
    assert len(encoder.encode(["some words " * 500_000])[0]) == 5_500_000
    assert time.perf_counter() - start < 2.0  # through tokenizers it takes about ten


def test_tokenizer_json_file(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert loaded("héy", add_special_tokens=False)["input_ids"] == list("héy".encode())


@pytest.fixture(scope="module")
def corpus():
    return [f"the number {i} is a large word{i % 7}, hello  world" for i in range(1500)]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_model_gives_its_own_ids(kind, corpus, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        vocab_size=330,
        model_type=kind,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=3,
        user_defined_symbols=["@@"],
        minloglevel=2,
    )
    path = tmp_path / "small.model"
    path.write_bytes(model.getvalue())
    original = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)
    for text in [*corpus[:50], "unknown 漢字 🎉 @@ x", " two  spaces ", "the text <s> is letters"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original.encode(text)
        assert tokenizer.decode(ids) == original.decode(ids)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    text = "hello the <s> world 漢"
    assert again(text, add_special_tokens=False)["input_ids"] == original.encode(text)


def test_what_is_not_a_tokenizer_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothere\.json"):
        load_tokenizer("nothere.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tokenizer(str(tmp_path / "no" / "folder"))
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "broken.model").write_bytes(b"\x0a\xff\xff not protobuf")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(str(tmp_path / "broken.model"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not a tokenizers file"):
        load_tokenizer(str(tmp_path / "broken.json"))
    (tmp_path / "words.csv").write_text("a,b")
    with pytest.raises(ValueError, match="unknown kind"):
        load_tokenizer(str(tmp_path / "words.csv"))
