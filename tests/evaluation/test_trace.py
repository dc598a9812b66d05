"""The report of a trace, and the text of tokens."""

import json

import numpy as np
import pytest

from titanslab.evaluation.pictures import STRETCH, _binned, largest_stretch, plot_trace
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


def a_trace(tokens: int, **gates) -> MemoryTrace:
    per_token = {name: np.zeros((2, tokens)) for name in PER_TOKEN} | gates
    return MemoryTrace(per_token, np.array([0, tokens]), np.array([[0.0, 1.0]] * 2), np.zeros((2, 2)))


def test_one_large_write_among_many_tokens_is_drawn_at_its_full_size(tmp_path):
    theta = np.full((2, 5000), 1e-8)
    theta[0, 0], theta[1, 3210] = 0.5, 0.4
    middles, highest = _binned(theta)
    assert len(middles) < 5000
    assert highest[1].max() == 0.4
    assert abs(middles[highest[1].argmax()] - 3210) < 10
    first, last = largest_stretch(theta)
    assert last - first == STRETCH
    assert first + 10 < 3210 < last - 10
    theta[0, 100] = np.nan
    plot_trace(a_trace(5000, theta=theta), tmp_path / "long.png", "title", ["漢"] * 5000)
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")


def test_panels_that_are_zero_everywhere_are_left_out(tmp_path, monkeypatch):
    shown = []

    def keep(figure, path, dpi):
        shown.append([axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")])

    monkeypatch.setattr("titanslab.evaluation.pictures._save", keep)
    plot_trace(a_trace(300), tmp_path / "a.png", "title", [" a"] * 300)
    plot_trace(a_trace(300, eta=np.ones((2, 300)), alpha=np.ones((2, 300))), tmp_path / "b.png", "title", [" a"] * 300)
    assert [title.split(":")[0].split(" ")[0] for title in shown[0]] == ["size", "the", "how", "surprise"]
    assert len(shown[1]) == 7
    assert {"momentum", "eta: momentum kept", "alpha: share forgotten"} < set(shown[1])
