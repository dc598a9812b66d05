"""The order of a run depends on the seed and the row's number alone."""

from itertools import islice

import numpy as np
import pytest
from torch.utils.data import Subset

from titanslab.data import byte_tokenizer, collate, open_corpus
from titanslab.data.order import MixedRows, ShuffledRows
from titanslab.data.streaming import StreamedRows


class Numbered:
    """Row i holds i."""

    def __init__(self, count, offset=0):
        self.count, self.offset = count, offset

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"input_ids": np.array([index + self.offset])}


def numbers(stream, indices):
    return [int(stream[i]["input_ids"][0]) for i in indices]


def test_each_epoch_is_another_order_of_all_rows():
    stream = ShuffledRows(Numbered(50), seed=3)
    first, second = numbers(stream, range(50)), numbers(stream, range(50, 100))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != numbers(ShuffledRows(Numbered(50), seed=4), range(50))
    assert numbers(ShuffledRows(Numbered(5), seed=3, shuffle=False), range(7)) == [0, 1, 2, 3, 4, 0, 1]


def test_a_row_does_not_depend_on_what_was_read_before():
    whole = numbers(ShuffledRows(Numbered(7), seed=1), range(40))
    assert numbers(ShuffledRows(Numbered(7), seed=1), range(23, 40)) == whole[23:]
    assert [numbers(ShuffledRows(Numbered(7), seed=1), [i])[0] for i in range(40)] == whole


def test_mixture_keeps_its_shares_and_is_pure():
    streams = [ShuffledRows(Numbered(100), 0), ShuffledRows(Numbered(100, 1000), 0)]
    mixed = MixedRows(streams, [0.25, 0.75], seed=5)
    drawn = numbers(mixed, range(2000))
    assert 0.70 < np.mean([n >= 1000 for n in drawn]) < 0.80
    assert numbers(MixedRows(streams, [1, 3], seed=5), range(1500, 2000)) == drawn[1500:]
    with pytest.raises(ValueError, match="one positive number per stream"):
        MixedRows(streams, [1.0], seed=0)


def test_run_rows_and_collate():
    rows = Subset(ShuffledRows(Numbered(3), 0, shuffle=False), range(8))
    assert len(rows) == 8
    assert collate([rows[i] for i in range(4)])["input_ids"].tolist() == [[0], [1], [2], [0]]


def test_collate_fills_short_rows_up_without_loss_as_a_document_of_their_own():
    def row(ids, **more):
        return {name: np.array(v) for name, v in {"input_ids": ids, "labels": ids, **more}.items()}

    batch = collate([row([5, 6, 7]), row([8])], pad_id=2)
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 2, 2]],
        "labels": [[5, 6, 7], [8, -100, -100]],
    }
    packed = collate([row([5, 6, 7], document_ids=[0, 0, 1]), row([8]), row([3, 4], document_ids=[0, 1])], pad_id=2)
    assert packed["document_ids"].tolist() == [[0, 0, 1], [0, 1, 1], [0, 1, 2]]
    hinted = collate([row([5, 6, 7]), row([8], block_targets=[[4, -100]])])
    assert hinted["block_targets"].tolist() == [[[-100, -100]] * 3, [[4, -100], [-100, -100], [-100, -100]]]


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line number {i}" for i in range(100)))
    return open_corpus(str(tmp_path), text_documents="line")


def test_streamed_rows_lose_nothing_and_start_again(lines):
    encoded = [t for text in lines for t in (256, *text.encode(), 257)]
    rows = list(islice(StreamedRows(lines, byte_tokenizer(), 64, buffer=1, seed=0), 60))
    stream = np.concatenate([row["input_ids"] for row in rows]).tolist()
    assert len(encoded) < len(stream)
    assert stream == (encoded * 3)[: len(stream)]
    starts = np.concatenate([row["labels"] for row in rows]) == -100
    assert all(stream[i] == 256 for i in np.flatnonzero(starts))


def test_streamed_order_depends_on_the_seed_alone(lines):
    def rows(seed):
        stream = StreamedRows(lines, byte_tokenizer(), 32, buffer=8, seed=seed)
        return np.stack([row["input_ids"] for row in islice(stream, 30)])

    assert np.array_equal(rows(1), rows(1))
    assert not np.array_equal(rows(1), rows(2))


def test_streaming_an_empty_corpus_raises(tmp_path):
    (tmp_path / "a.txt").write_text("")
    corpus = open_corpus(str(tmp_path / "a.txt"), "data.train")
    with pytest.raises(ValueError, match=r"data\.train holds no text: .*a\.txt is empty"):
        next(iter(StreamedRows(corpus, byte_tokenizer(), 32, buffer=1, seed=0)))
