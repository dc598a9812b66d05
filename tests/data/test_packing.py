"""Rows: every token in its place, documents told apart, nothing scored across a boundary."""

import numpy as np
import pytest

from titanslab.data import byte_tokenizer, open_corpus, tokenize
from titanslab.data.packing import TokenRows, make_row
from titanslab.data.tokens import Tokens


@pytest.fixture
def tokens(tmp_path):
    (tmp_path / "a.txt").write_text("hello\nhé\nxyz")
    return tokenize(open_corpus(str(tmp_path), text_documents="line"), byte_tokenizer())


def test_tokens_are_the_documents_with_start_and_end(tokens):
    assert tokens.ids.tolist() == [*(256, *b"hello", 257), *(256, *"hé".encode(), 257), *(256, *b"xyz", 257)]
    assert tokens.offsets.tolist() == [0, 7, 12, 17]
    assert len(tokens.offsets) - 1 == 3
    assert tokens.text_bytes == 11


def test_packed_rows_follow_the_stream(tokens):
    rows = TokenRows(tokens, 4)
    assert len(rows) == 4
    stream = np.concatenate([rows[i]["input_ids"] for i in range(4)])
    assert stream.tolist() == tokens.ids[:16].tolist()
    assert rows[1]["document_ids"].tolist() == [0, 0, 0, 1]
    assert rows[1]["labels"].tolist() == [ord("l"), ord("o"), 257, -100]
    assert rows[2]["document_ids"].tolist() == [0, 0, 0, 0]
    assert rows[2]["labels"].tolist() == rows[2]["input_ids"].tolist()


def test_tail_is_kept_on_request_and_its_padding_is_not_scored(tokens):
    rows = TokenRows(tokens, 4, keep_tail=True, pad_id=258)
    assert len(rows) == 5
    assert rows[4]["input_ids"].tolist() == [257, 258, 258, 258]
    assert rows[4]["labels"].tolist() == [257, -100, -100, -100]
    assert rows[4]["document_ids"].tolist() == [0, 1, 1, 1]


def test_document_rows_hold_one_document_each(tokens):
    rows = TokenRows(tokens, 6, pack=False, pad_id=258)
    assert len(rows) == 4
    assert rows[0]["input_ids"].tolist() == [256, *b"hello"]
    assert rows[1]["input_ids"].tolist() == [257, 258, 258, 258, 258, 258]
    assert rows[2]["labels"].tolist() == [256, *"hé".encode(), 257, -100]
    assert rows[3]["document_ids"].tolist() == [0, 0, 0, 0, 0, 1]


def test_rows_of_every_length_agree_with_a_plain_loop():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, size=30)
    ids = rng.integers(0, 100, size=int(lengths.sum())).astype(np.uint16)
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]), 1)
    owner = np.repeat(np.arange(30), lengths)
    for length in (1, 2, 5, 16):
        rows = TokenRows(tokens, length)
        for index in range(len(rows)):
            row = rows[index]
            for place in range(length):
                at = index * length + place
                assert row["input_ids"][place] == ids[at]
                assert row["document_ids"][place] == owner[at] - owner[index * length]
                first = place > 0 and owner[at] != owner[at - 1]
                assert row["labels"][place] == (-100 if first else ids[at])


def test_row_arrays_are_int64():
    row = make_row(np.array([1, 2, 3]), np.array([0, 0, 1]), 5)
    assert {array.dtype for array in row.values()} == {np.dtype(np.int64)}
    assert {array.shape for array in row.values()} == {(5,)}
