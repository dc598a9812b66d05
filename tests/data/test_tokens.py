"""Tokenised corpora are kept on disk and made anew when anything they depend on changes."""

import os

import numpy as np
import pytest

import titanslab.data.tokens as tokens_module
from titanslab.data import byte_tokenizer, open_corpus, tokenize


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text")
    return path


def test_the_second_time_is_read_from_the_cache(text_file, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    monkeypatch.setattr(tokens_module.TextEncoder, "documents", None)  # encoding again would fail
    second = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    assert second.ids.tolist() == first.ids.tolist()
    assert second.offsets.tolist() == first.offsets.tolist()
    assert second.text_bytes == first.text_bytes == 9
    assert not [name for name in os.listdir(cache) if name.startswith(".")]


def test_changed_text_is_tokenised_anew(text_file, tmp_path):
    cache = tmp_path / "cache"
    tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    text_file.write_text("other text, longer")
    again = tokenize(open_corpus(str(text_file)), byte_tokenizer(), cache=cache)
    assert bytes(again.ids[1:-1].astype(np.uint8)) == b"other text, longer"


def test_small_batches_give_the_same_tokens(tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    whole = tokenize(open_corpus(str(tmp_path)), byte_tokenizer())
    monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 7)
    seen = []
    pieces = tokenize(
        open_corpus(str(tmp_path)), byte_tokenizer(), progress=lambda done, total: seen.append((done, total))
    )
    assert pieces.ids.tolist() == whole.ids.tolist()
    assert len(seen) > 1
    assert {total for _, total in seen} == {30}


def test_nothing_but_empty_files_raises(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="holds no text"):
        tokenize(open_corpus(str(tmp_path / "a.txt"), "data.train"), byte_tokenizer())
