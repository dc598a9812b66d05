"""Naming lengths, ending sentences, drawing seeds."""

import pytest

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


def test_seeds_and_samples_are_plain_values():
    assert derive_seed("a", 1) == 9484037261928657086
    assert derive_seed("a", 1) != derive_seed("a1")
    sample = TaskSample("t", 1, 2, "prompt é\n", "x", {"depth": 1.5})
    assert TaskSample.from_json(sample.to_json()) == sample
    assert "\n" not in sample.to_json()


@pytest.mark.parametrize("depth", ["", -1, 101, [5], True])
def test_a_depth_that_is_no_share_is_refused(depth):
    sample = TaskSample("niah_single_1", 600, 0, "text", "7", {"depth": depth})
    with pytest.raises(ValueError, match=r"a sample: info\.depth"):
        TaskSample.from_json(sample.to_json())
