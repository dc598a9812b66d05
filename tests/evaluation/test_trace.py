"""The report of a trace, and the text of tokens."""

import json

import numpy as np
import pytest

from titanslab.evaluation.pictures import plot_trace
from titanslab.evaluation.trace import PER_TOKEN, MemoryTrace, token_texts, write_report


def test_the_spaces_of_words_are_shown():
    class Words:
        """A tokenizer that drops the space before a text's first word."""

        words = ("_the", "_door", "s", "_was", "<0xC3>", "<0xA9>")

        def decode(self, ids, **_):
            text = "".join(self.words[i] for i in ids).replace("_", " ").removeprefix(" ")
            return text.replace("<0xC3><0xA9>", "é").replace("<0xC3>", "\ufffd").replace("<0xA9>", "\ufffd")

    assert token_texts(Words(), [0, 1, 2, 3, 4, 5, 0]) == ["the", " door", "s", " was", "", "é", " the"]


def test_a_report_needs_a_text_for_each_token(tmp_path):
    per_token = {name: np.array([[0.5, np.nan, 0.25]]) for name in PER_TOKEN}
    trace = MemoryTrace(per_token, np.array([0, 3]), np.array([[0.0, 1.0]]), np.array([[0.0, 0.5]]))
    options = {"title": "a", "subtitle": "b", "about": {"model": "c"}}
    with pytest.raises(ValueError, match="one text per token, 3, got 2"):
        write_report(trace, ["a", "b"], tmp_path, **options)
    texts = ["a", "$_{ TOKENS", "</b>"]
    page, picture, numbers = write_report(trace, texts, tmp_path / "new", **options)
    assert "<span>$_{ TOKENS</span><span>&lt;/b&gt;</span>" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(numbers.read_text())["surprise"] == [[0.5, None, 0.25]]
    plot_trace(trace, tmp_path / "short.png", "with the text below", tokens=texts)
    assert (tmp_path / "short.png").read_bytes().startswith(b"\x89PNG")
