"""From [data] to rows: tasks and mixtures with text, validation, too little data."""

import numpy as np
import pytest

from titanslab.data import byte_tokenizer, open_corpus
from titanslab.data.write_shards import tokenize_folder
from titanslab.training.recipe import DataRecipe
from titanslab.training.sources import training_stream, validation_rows


def rows(data, seed=0, count=12, **options):
    stream = training_stream(data, byte_tokenizer(), seed=seed, **options)
    return [stream[index] for index in range(count)]


def test_text_is_shuffled_by_the_seed(text_file):
    data = DataRecipe(train=str(text_file), sequence_length=64)
    first = [row["input_ids"].tolist() for row in rows(data)]
    assert first == [row["input_ids"].tolist() for row in rows(data)]
    assert first != [row["input_ids"].tolist() for row in rows(data, seed=1)]
    data.shuffle = False
    text = text_file.read_bytes()
    assert bytes(rows(data)[0]["input_ids"][1:].tolist()) == text[:63]


def test_one_document_a_row(text_file):
    data = DataRecipe(
        train=str(text_file), text_documents="line", pack_documents=False, sequence_length=64, shuffle=False
    )
    row = rows(data)[1]
    line = text_file.read_bytes().split(b"\n")[1]
    assert row["input_ids"][: len(line) + 3].tolist() == [256, *line, 257, 258]
    assert (row["labels"][len(line) + 2 :] == -100).all()


def test_too_little_text_says_how_much_is_needed(text_file):
    data = DataRecipe(train=str(text_file), sequence_length=4096)
    with pytest.raises(ValueError, match=r"make \d rows of data\.sequence_length = 4096, and one batch needs 64"):
        rows(data, rows_needed=64)


def test_validation_scores_every_byte_and_can_be_cut_short(text_file):
    size = text_file.stat().st_size
    data = DataRecipe(train="unused", validation=str(text_file), sequence_length=100)
    every, bytes_per_token = validation_rows(data, byte_tokenizer())
    scored = sum(int((every[i]["labels"] != -100).sum()) for i in range(len(every)))
    assert scored == size + 2  # and the start and end token
    assert bytes_per_token == pytest.approx(size / (size + 1))
    data.validation_samples = 3
    short, _ = validation_rows(data, byte_tokenizer())
    assert len(short) == 3
    with pytest.raises(IndexError):
        short[3]


def test_tasks_make_rows_by_number_and_mix_with_text(text_file):
    options = {"num_facts": 2, "fact_every": 16, "background": str(text_file)}
    data = DataRecipe(task="recall", task_options=options, sequence_length=256)
    alone = rows(data)
    assert {row["input_ids"].shape for row in alone} == {(256,)}
    assert all("document_ids" not in row for row in alone)  # each row is one document
    again = training_stream(data, byte_tokenizer(), seed=0)[7]
    assert np.array_equal(again["input_ids"], alone[7]["input_ids"])
    mixed = DataRecipe(task="recall", task_options=options, task_share=0.5, train=str(text_file), sequence_length=256)
    drawn = rows(mixed, count=40)
    from_task = [any(np.array_equal(r["input_ids"], t["input_ids"]) for t in rows(data, count=40)) for r in drawn]
    assert 8 <= sum(from_task) <= 32


def test_unknown_tasks_and_options_are_named():
    with pytest.raises(ValueError, match=r"data\.task = 'nope': name is 'nope'; it must be one of"):
        rows(DataRecipe(task="nope", sequence_length=64))
    with pytest.raises(ValueError, match=r"data\.task_options of data\.task = 'kv_recall': .*colour"):
        rows(DataRecipe(task="kv_recall", task_options={"colour": 3}, sequence_length=64))


def test_rows_of_a_folder_of_tokens_are_those_of_its_texts(text_file, tmp_path):
    corpus = open_corpus(str(text_file), text_documents="line")
    tokenize_folder(tmp_path / "tokens", corpus, byte_tokenizer(), shard_tokens=900)
    for pack in (True, False):
        options = {"pack_documents": pack, "sequence_length": 40}
        texts = DataRecipe(train=str(text_file), validation=str(text_file), text_documents="line", **options)
        made = DataRecipe(train=str(tmp_path / "tokens"), validation=str(tmp_path / "tokens"), **options)
        for row, other in zip(rows(texts, count=500), rows(made, count=500), strict=True):  # more than an epoch
            assert {name: values.tolist() for name, values in row.items()} == {
                name: values.tolist() for name, values in other.items()
            }
        every = [validation_rows(data, byte_tokenizer()) for data in (texts, made)]
        assert [len(part) for part, _ in every] == [len(every[0][0])] * 2
        assert every[0][1] == every[1][1]
