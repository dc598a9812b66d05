"""Documents in order: a line of the batch goes on with its own document, and every row is a function of its number."""

import numpy as np
import pytest

from titanslab.data.documents import ALONE, ANEW, BEGINS, GOES_ON, DocumentRows, OnePass, WithTask, collate_documents
from titanslab.data.tokens import Tokens

LENGTHS = (23, 5, 41, 10, 16)


@pytest.fixture
def tokens():
    """Token `100 * d + i` is the i-th one of document d."""
    ids = np.concatenate([100 * d + np.arange(n) for d, n in enumerate(LENGTHS)])
    return Tokens(ids, np.concatenate([[0], np.cumsum(LENGTHS)]), len(ids))


def test_each_line_goes_on_where_it_was(tokens):
    rows = DocumentRows(tokens, 8, 3, seed=4)
    pieces = sum(-(-n // 8) for n in LENGTHS)
    assert rows.steps == pieces // 3
    anew = 0
    for line in range(3):
        before = None
        for step in range(3 * rows.steps):
            row = rows[step * 3 + line]
            ids = row["input_ids"]
            if row[BEGINS] == GOES_ON:
                assert ids[0] == before + 1, "the piece follows on the one before"
            else:
                anew += 1
                assert ids[0] % 100 == 0 or step % rows.steps == 0, "a document, or the line's part of it, begins"
            before = int(ids[-1])
    assert anew > 9


def test_an_epoch_has_each_piece_once_and_another_order_the_next_time(tokens):
    rows = DocumentRows(tokens, 8, 2, seed=4)
    epochs = [[tuple(rows[i]["input_ids"]) for i in range(e * len(rows), (e + 1) * len(rows))] for e in range(2)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
        assert len(np.concatenate(epoch)) >= sum(LENGTHS) - 8, "at most one piece is left out"
    assert epochs[0] != epochs[1]
    again = DocumentRows(tokens, 8, 2, seed=4)
    assert [tuple(again[i]["input_ids"]) for i in reversed(range(len(rows)))] == epochs[0][::-1]
    assert [tuple(OnePass(rows)[i]["input_ids"]) for i in range(len(rows))] == epochs[0]
    assert len(OnePass(rows, 5)) == 4, "whole batches"


def test_pieces_bound_the_memory(tokens):
    rows = DocumentRows(tokens, 8, 1, pieces=2, shuffle=False)
    begins = [int(rows[i][BEGINS]) for i in range(len(rows))]
    assert begins == [ANEW, 0, ANEW, ANEW, ANEW, 0, ANEW, 0, ANEW, 0, ANEW, 0, ANEW, 0]


def test_a_task_has_its_share_of_the_steps_and_documents_go_on(tokens):
    class Task:
        def __getitem__(self, index):
            return {"input_ids": np.array([900 + index, 1, 2, 0]), "labels": np.array([-100, 1, 2, -100])}

    documents = DocumentRows(tokens, 8, 2, seed=1)
    mixed = WithTask(documents, Task(), 0.25)
    steps = [mixed[2 * step] for step in range(8)]
    kinds = [row[BEGINS] == ALONE for row in steps]
    assert sum(kinds) == 2
    read = [tuple(row["input_ids"]) for row in steps if row[BEGINS] != ALONE]
    assert read == [tuple(documents[2 * step]["input_ids"]) for step in range(6)]
    assert [row["input_ids"].tolist() for row in steps if row[BEGINS] == ALONE] == [[900, 1, 2], [902, 1, 2]]


def test_a_batch_is_padded_on_the_right(tokens):
    rows = DocumentRows(tokens, 8, 3, shuffle=False)
    batch = collate_documents(
        [rows[0], {"input_ids": np.array([7]), "labels": np.array([7]), BEGINS: np.array(ANEW)}], 9
    )
    assert batch["input_ids"][1].tolist() == [7] + [9] * 7
    assert batch["labels"][1].tolist() == [7] + [-100] * 7
    assert batch["attention_mask"].sum(1).tolist() == [8, 1]
    assert batch[BEGINS].tolist() == [ANEW, ANEW]


def test_too_little_text(tokens):
    with pytest.raises(ValueError, match=r"data.train holds too little data: 95 tokens make 2 pieces"):
        DocumentRows(Tokens(np.arange(95), np.array([0, 95]), 95), 50, 3)
