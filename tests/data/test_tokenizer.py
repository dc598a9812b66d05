"""Tokenizers: bytes exactly, Hugging Face files, SentencePiece models with the ids of its own package."""

import io
import json
import sys
import time

import pytest
import sentencepiece
from transformers import AutoTokenizer

from titanslab.data import TextEncoder, byte_tokenizer, load_tokenizer
from titanslab.data.tokenizer import is_byte_tokenizer

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


def sentencepiece_model(path, corpus, kind, **options):
    """Train a small model, write it to `path` and return it as its own package opens it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        vocab_size=330,
        model_type=kind,
        hard_vocab_limit=False,
        user_defined_symbols=["@@"],
        minloglevel=2,
        **{"byte_fallback": True, "pad_id": 3, **options},
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, (1, 2, 3)),
        ({"pad_id": -1, "add_dummy_prefix": False, "remove_extra_whitespaces": False}, (1, 2, None)),
        ({"bos_id": -1, "eos_id": 1, "control_symbols": ["<mask>"]}, (None, 1, 3)),
        ({"normalization_rule_name": "identity"}, (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_model_gives_its_own_ids(kind, options, ids, corpus, tmp_path):
    original = sentencepiece_model(tmp_path / "small.model", corpus, kind, **options)
    tokenizer = load_tokenizer(str(tmp_path / "small.model"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == ids
    texts = [*corpus[:50], "unknown 漢字 🎉 @@ x", " two  spaces ", "the text <s> is letters", "", "ﬁ ½ tab\tx\nnew"]
    texts += ["<mask> </s><pad><unk> hello<s>", "hello the <s> world 漢"]
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, load_tokenizer(str(tmp_path / "saved"))):
        for text in texts:
            ids = one(text, add_special_tokens=False)["input_ids"]
            assert ids == original.encode(text)
            assert one.decode(ids) == original.decode(ids)
        assert TextEncoder(one).encode(texts)[-1].tolist() == original.encode(texts[-1])
    if "control_symbols" in options:
        mask = original.piece_to_id("<mask>")
        assert tokenizer.decode([mask, *original.encode("hello")], skip_special_tokens=True).strip() == "hello"


def test_a_folder_with_a_sentencepiece_model_alone_is_read(corpus, tmp_path):
    original = sentencepiece_model(tmp_path / "tokenizer.model", corpus, "bpe")
    ids = load_tokenizer(str(tmp_path))(corpus[0], add_special_tokens=False)["input_ids"]
    assert ids == original.encode(corpus[0])


def test_sentencepiece_without_its_package_names_the_extra(corpus, tmp_path, monkeypatch):
    sentencepiece_model(tmp_path / "small.model", corpus, "bpe")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"small\.model.*titans-lab\[sentencepiece\]"):
        load_tokenizer(str(tmp_path / "small.model"))


def test_a_sentencepiece_model_of_another_type_says_so(corpus, tmp_path):
    sentencepiece_model(tmp_path / "char.model", corpus, "char", byte_fallback=False)
    with pytest.raises(ValueError, match="of type unigram or BPE; only those"):
        load_tokenizer(str(tmp_path / "char.model"))


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


@pytest.mark.parametrize("place", ["added_tokens", "vocab"])
@pytest.mark.parametrize("id", [-1, 1 << 31, 1 << 40])
def test_an_id_that_no_vocabulary_has_is_refused(tmp_path, place, id):
    byte_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    if place == "vocab":
        content["model"]["vocab"]["a"] = id
    else:
        content["added_tokens"][0]["id"] = id
    file.write_text(json.dumps(content))
    for name in (file, tmp_path):
        with pytest.raises(ValueError, match=rf"token id {id}; ids are from 0"):
            load_tokenizer(str(name))
