"""Recall in running text and in streams of keys and values, against plain loops."""

import re
import time

import pytest
import torch

from titanslab.tasks.recall.kv import make_kv_recall
from titanslab.tasks.recall.samples import RecallTask, answers_right, recall_rows


@pytest.mark.parametrize(
    ("length", "pairs", "density", "rewrite"), [(64, 4, 1.0, 0.0), (257, 20, 0.4, 0.3), (2, 1, 1.0, 0.0)]
)
def test_kv_recall_by_a_plain_loop(length, pairs, density, rewrite):
    batch = make_kv_recall(
        5, length, pairs, num_keys=24, num_values=7, num_fillers=3, density=density, rewrite=rewrite,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    scored = 0
    for ids, labels, distance in zip(*(t.tolist() for t in batch), strict=True):
        values, places = {}, {}
        for t, token in enumerate(ids):
            is_value = token >= 27
            if is_value:
                key = ids[t - 1]
                assert 3 <= key < 27
                if labels[t] != -100:
                    assert labels[t] == token == values[key]
                    assert distance[t] == t - places[key]
                    scored += 1
                else:
                    assert key not in values or rewrite > 0
                values[key], places[key] = token, t
            if labels[t] == -100:
                assert distance[t] == 0
        assert len(values) <= pairs
    assert scored > 0 or length == 2


def test_kv_recall_repeats_with_its_generator():
    first, second, other = (
        make_kv_recall(2, 128, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.input_ids, other.input_ids)


def test_kv_recall_is_fast():
    begun = time.perf_counter()
    make_kv_recall(64, 4096, 32, generator=torch.Generator().manual_seed(0))
    assert 64 * 4096 / (time.perf_counter() - begun) > 200_000


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_recall_rows_score_what_can_be_known(kind, byte, bpe, prose):
    tokenizer = byte if kind == "byte" else bpe
    task = RecallTask(tokenizer, prose, num_facts=3, fact_every=20)
    row = task.row(1500, seed=1, index=0)
    ids = row.input_ids[0].tolist()
    text = tokenizer.decode(ids)
    statements = re.findall(r"The secret of (\w+) is (\d{4})\.", text)
    assert len(dict(statements)) == 3
    assert all(dict(statements)[name] == value for name, value in statements)
    spans = [(row.answer[0] == n).nonzero().flatten() for n in range(1, int(row.answer.max()) + 1)]
    assert len(spans) == len(statements) - 3
    for span in spans:
        start, distance = int(span[0]), int(row.distance[0, span[0]])
        value = ids[start : start + len(span)]
        assert value == ids[start - distance : start - distance + len(span)]
        assert row.labels[0, span].tolist() == value
        assert re.fullmatch(r"\s*\d{4}", tokenizer.decode(value))
    assert int((row.labels != -100).sum()) == sum(len(span) for span in spans)


def test_recall_with_loss_on_text_leaves_out_first_mentions(byte, prose):
    task = RecallTask(byte, prose, num_facts=2, fact_every=20)
    dense, answers = (task.row(800, seed=1, index=5, loss=loss) for loss in ("text", "answers"))
    assert torch.equal(dense.input_ids, answers.input_ids)
    hidden = dense.labels[0] == -100
    assert byte.decode(dense.input_ids[0][hidden].tolist()).split() == list(
        dict(re.findall(r"secret of (\w+) is (\d{4})", byte.decode(dense.input_ids[0].tolist()))).values()
    )


@pytest.mark.parametrize("distance", [60, 150, 1000])
def test_recall_questions_stand_at_their_distance(distance, byte, prose):
    task = RecallTask(byte, prose, num_facts=4, fact_every=30)
    batch = task.questions(distance, 6, seed=0, lead=100)
    for ids, labels, away in zip(batch.input_ids, batch.labels, batch.distance, strict=True):
        text, asked = byte.decode(ids.tolist()), (labels != -100).nonzero().flatten()
        assert int(asked[-1]) == len(ids) - 1
        assert away[asked].tolist() == [distance] * len(asked)
        name = re.search(r"The secret of (\w+) is \d{4}$", text)[1]
        values = re.findall(rf"The secret of {name} is (\d{{4}})", text)
        assert len(values) == 2
        assert values[0] == values[1] == byte.decode(labels[asked].tolist()).strip()
        last = text.rindex(" " + values[0])
        assert last - text.index(" " + values[0]) == distance
    others = len(re.findall("The secret of", byte.decode(batch.input_ids[0].tolist())))
    assert others > 2 or distance < 1000


def test_recall_is_a_function_of_seed_and_index(byte, prose):
    task, again = (RecallTask(byte, prose, fact_every=20) for _ in range(2))
    batch = task.batch(4, 300, seed=9, index=2)
    assert torch.equal(batch.input_ids[1:2], again.row(300, 9, 9).input_ids)
    assert not torch.equal(batch.input_ids[0], batch.input_ids[1])


def test_answers_right_needs_every_token(byte, prose):
    batch = RecallTask(byte, prose, num_facts=2, fact_every=20).batch(2, 600, seed=0)
    right = answers_right(batch.input_ids, batch)
    assert bool(right.all())
    assert len(right) == int(batch.answer.amax(1).sum()) > 2
    wrong = batch.input_ids.clone()
    wrong[0, (batch.answer[0] == 1).nonzero()[-1]] += 1
    assert int(answers_right(wrong, batch).sum()) == len(right) - 1


def test_a_short_row_has_an_answer_or_is_refused(byte, tmp_path, prose):
    (tmp_path / "prose.txt").write_text(prose)
    options = {"background": str(tmp_path / "prose.txt"), "num_facts": 2, "fact_every": 10}
    make = recall_rows(byte, **options)
    task = RecallTask(byte, prose, num_facts=2, fact_every=10)
    rows = [task.row(180, seed, 0) for seed in range(20)]
    empty = [bool((row.labels == -100).all()) for row in rows]
    assert True in empty
    assert False in empty
    for seed, row in enumerate(rows):
        made = make(180, seed)
        assert any(label != -100 for label in made.labels)
        assert (made.ids == row.input_ids[0].tolist()) == (not empty[seed]), "a row with an answer stays as it is"
    with pytest.raises(ValueError, match="a sample of recall does not fit 30 tokens"):
        make(30, 0)


def test_recall_rows_are_fast(byte, prose):
    task = RecallTask(byte, prose)
    begun = time.perf_counter()
    task.batch(16, 2048, seed=0)
    assert 16 * 2048 / (time.perf_counter() - begun) > 100_000


def test_wrong_arguments_say_what_to_do(byte, prose):
    with pytest.raises(ValueError, match="num_pairs is 65"):
        make_kv_recall(1, 64, 65)
    with pytest.raises(ValueError, match="num_facts is 0"):
        RecallTask(byte, prose, num_facts=0)
    with pytest.raises(ValueError, match="at least 256"):
        RecallTask(byte, "too little text")
    with pytest.raises(ValueError, match="at least 3"):
        RecallTask(byte, prose).questions(10, 1, seed=0)
    with pytest.raises(ValueError, match="once each"):
        RecallTask(byte, prose, template="{key} has no value")
