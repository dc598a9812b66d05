"""Training rows: only answers have labels, and row i depends on the seed and i alone."""

import json
import lzma
import re

import pytest
import torch

from titanslab.tasks.babilong.babi import load_babi
from titanslab.tasks.mixture import Mixture


@pytest.fixture(scope="module")
def options(tmp_path_factory, prose, books, babi):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "essay.json").write_text(json.dumps({"text": prose}))
    with lzma.open(folder / "books.jsonl.xz", "wt") as file:
        file.writelines(json.dumps({"title": "x", "text": book}) + "\n" for book in books)
    return {
        "niah": {"variant": ["single_1", "single_2", "single_3"], "haystack": str(folder / "essay.json")},
        "babilong": {"facts": str(babi), "background": str(folder / "books.jsonl.xz"), "tasks": ["qa1", "qa7"]},
        "recall": {"background": str(folder / "essay.json"), "num_facts": 2, "fact_every": 16},
        "kv_recall": {"num_pairs": 4, "num_keys": 16},
    }


FACTS = re.compile(r"(?:John|Mary) (?:went|moved|travelled) to the \w+\.")  # of qa1's stories
NAMES = ["niah", "babilong", "recall", "kv_recall"]


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_have_their_length_and_some_loss(name, kind, options, byte, bpe):
    tokenizer = byte if kind == "byte" else bpe
    rows = Mixture(name, tokenizer, 1024, 5, min_length=640, **options[name])
    lengths = set()
    for index in range(20):
        row = rows[index]
        assert row["input_ids"].shape == row["labels"].shape == (1024,)
        assert row["input_ids"].dtype == torch.int64
        scored = row["labels"] != -100
        assert bool(scored.any()) or name == "recall"
        assert torch.equal(row["labels"][scored], row["input_ids"][scored])
        if bool(scored.any()):
            lengths.add(int(scored.nonzero()[-1]))
    assert len(lengths) > 5
    assert max(lengths) > 900


@pytest.mark.parametrize("name", NAMES)
def test_going_on_is_the_same_as_never_stopping(name, options, byte):
    whole, resumed, other = (
        Mixture(name, byte, 1024, seed, min_length=700, curriculum_rows=8, **options[name]) for seed in (5, 5, 6)
    )
    rows = [whole[index] for index in range(6)]
    for index in (4, 5):
        again = resumed[index]
        assert all(torch.equal(rows[index][key], again[key]) for key in again)
    assert not torch.equal(rows[0]["input_ids"], other[0]["input_ids"])


def test_niah_loss_is_the_value_and_the_end(options, byte):
    rows = Mixture("niah", byte, 1024, 0, **options["niah"])
    kinds = set()
    for index in range(12):
        row = rows[index]
        ids, labels = row["input_ids"], row["labels"]
        assert int(ids[0]) == byte.bos_token_id
        answer = labels[labels != -100]
        assert int(answer[-1]) == byte.eos_token_id
        value = byte.decode(answer[:-1].tolist())
        prompt = byte.decode(ids[: int((labels != -100).nonzero()[0])].tolist())
        assert prompt.endswith("mentioned in the provided text is")
        assert f"is: {value.strip()}." in prompt
        kinds.add((len(value), "The grass is green." in prompt))
        # The row lacks less than one unit of haystack.
        assert int((labels != -100).nonzero()[-1]) > 1024 - 95
    assert kinds == {(8, True), (8, False), (37, False)}


def test_babilong_loss_is_the_answer_as_it_is_scored(options, byte):
    rows = Mixture("babilong", byte, 600, 0, **options["babilong"])
    answers = set()
    for index in range(12):
        labels = rows[index]["labels"]
        answers.add(byte.decode(labels[labels != -100][:-1].tolist()))
    assert answers <= {" office", " kitchen", " hallway", " one", " none"}
    assert len(answers) > 3


def test_whole_stories_ask_every_question_after_its_facts(options, byte):
    settings = options["babilong"] | {"tasks": "qa1"}
    rows = Mixture("babilong", byte, 1500, 0, whole_stories=1.0, **settings)
    stories = {question.facts: question for question in load_babi(settings["facts"], "qa1", "train")}
    earlier = 0
    for index in range(30):
        ids, labels = rows[index]["input_ids"].tolist(), rows[index]["labels"].tolist()
        text = byte.decode([i if label == -100 else 0 for i, label in zip(ids, labels, strict=True)])
        question = stories[tuple(FACTS.findall(text))]
        asked = [*question.earlier, question]
        ends = [i for i, label in enumerate(labels) if label == byte.eos_token_id]
        assert len(ends) == len(asked)
        for one, end in zip(asked, ends, strict=True):
            before = byte.decode(ids[1:end])
            assert before.endswith(f"{one.question} {one.answer}")
            assert tuple(FACTS.findall(before)) == one.facts
        earlier += len(question.earlier)
        assert 1300 < ends[-1] < 1500
    assert earlier > 5
    plain = Mixture("babilong", byte, 1500, 0, **settings)
    half = Mixture("babilong", byte, 1500, 0, whole_stories=0.5, **settings)
    counts = [[int((m[i]["labels"] == byte.eos_token_id).sum()) for i in range(30)] for m in (plain, half)]
    assert set(counts[0]) == {1}
    assert set(counts[1]) > {1}
    with pytest.raises(ValueError, match="whole_stories is 2; it must be 0 to 1"):
        Mixture("babilong", byte, 1500, 0, whole_stories=2, **settings)
    with pytest.raises(ValueError, match="form is 'few_shot'; it must be base"):
        Mixture("babilong", byte, 1500, 0, form="few_shot", **settings)


def test_lengths_grow_over_the_curriculum(options, byte):
    rows = Mixture("babilong", byte, 2048, 0, min_length=256, curriculum_rows=40, **options["babilong"])
    ends = [int((rows[i]["labels"] != -100).nonzero()[-1]) for i in range(80)]
    assert max(ends[:8]) < 512
    assert max(ends[40:]) > 1500
    assert min(ends[40:]) < 800
    settings = dict(min_length=256, curriculum_rows=40, later_min_length=1400, **options["babilong"])
    late = Mixture("babilong", byte, 2048, 0, **settings)
    assert all(torch.equal(late[i]["labels"], rows[i]["labels"]) for i in range(8))
    assert min(int((late[i]["labels"] != -100).nonzero()[-1]) for i in range(40, 80)) > 1200
    with pytest.raises(ValueError, match="later_min_length is 255; it must be min_length to sequence_length, 256 to"):
        Mixture("babilong", byte, 2048, 0, **(settings | {"later_min_length": 255}))


def test_rows_of_a_batch_have_the_length_drawn_for_it(options, byte):
    settings = dict(min_length=256, curriculum_rows=24, same_length_rows=4, **options["babilong"])
    rows = Mixture("babilong", byte, 2048, 0, **settings)
    widths = [len(rows[i]["input_ids"]) for i in range(48)]
    assert all(len(set(widths[i : i + 4])) == 1 for i in range(0, 48, 4))
    assert len(set(widths)) > 8
    assert widths[0] == 256
    assert max(widths[24:]) > 1000
    ends = [int((rows[i]["labels"] != -100).nonzero()[-1]) for i in range(48)]
    assert all(width - 120 < end < width for width, end in zip(widths, ends, strict=True))  # one sentence at most
    again = Mixture("babilong", byte, 2048, 0, **settings)[31]
    assert all(torch.equal(again[name], rows[31][name]) for name in again)
    with pytest.raises(ValueError, match="choose one of the two"):
        Mixture("babilong", byte, 2048, 0, pack=True, **settings)
    with pytest.raises(ValueError, match="same_length_rows is -1"):
        Mixture("kv_recall", byte, 64, 0, same_length_rows=-1)


def test_packed_rows_hold_several_documents(options, byte):
    row = Mixture("babilong", byte, 2048, 0, min_length=300, pack=True, **options["babilong"])[0]
    documents = row["document_ids"]
    assert documents.shape == (2048,)
    assert bool((documents.diff() >= 0).all())
    starts = [0, *((documents.diff() > 0).nonzero().flatten() + 1).tolist()]
    assert len(starts) > 2
    assert all(int(row["input_ids"][s]) == byte.bos_token_id for s in starts[:-1])


def test_wrong_arguments_say_what_to_do(options, byte):
    with pytest.raises(ValueError, match="niah, babilong"):
        Mixture("nia", byte, 1024, 0)
    with pytest.raises(ValueError, match="min_length is 2000"):
        Mixture("niah", byte, 1024, 0, min_length=2000)
    with pytest.raises(ValueError, match="does not fit 64 tokens"):
        _ = Mixture("niah", byte, 64, 0)[0]
    with pytest.raises(ValueError, match="haystack is missing"):
        Mixture("niah", byte, 1024, 0, variant="single_2")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Mixture("niah", byte, 1024, 0, variant="single_2", haystack="/nowhere.txt")


@pytest.mark.parametrize("variant", ["single_1", "single_2", "single_3"])
def test_decoys_are_strewn_around_the_needle(variant, options, byte):
    plain, strewn = (
        Mixture("niah", byte, 1536, 5, **(options["niah"] | {"variant": variant, "decoys": decoys}))
        for decoys in (0, 15)
    )
    extra = 0
    for index in range(12):
        row = strewn[index]
        text = byte.decode(row["input_ids"], skip_special_tokens=True)
        answer = byte.decode(row["labels"][row["labels"] != -100], skip_special_tokens=True).strip()
        assert f"s for {text.split('magic')[-1].split(' for ')[1].split(' mentioned')[0]} is: {answer}." in text
        assert len(text) > 1300, "the haystack gives way to no more than the decoys' length"
        bare = byte.decode(plain[index]["input_ids"], skip_special_tokens=True)
        extra += sum(c.isdigit() for c in text) - sum(c.isdigit() for c in bare)
    assert (extra > 300) == (variant != "single_1")


def test_decoys_out_of_range_are_refused(options, byte):
    with pytest.raises(ValueError, match="decoys is -1"):
        Mixture("niah", byte, 1024, 5, **options["niah"], decoys=-1)


def test_babilong_decoys_are_sentences_of_the_books(tmp_path, byte, prose, options):
    book = "He had left the apple on the table and went home without it. " + prose
    (tmp_path / "book.txt").write_text(book)
    options = {"tasks": "qa1", "background": str(tmp_path / "book.txt")}
    plain, strewn = (Mixture("babilong", byte, 1536, 5, **options, decoys=decoys) for decoys in (0, 0.5))
    found = [
        sum(byte.decode(row["input_ids"]).count("He had left the apple") for row in map(rows.__getitem__, range(12)))
        for rows in (plain, strewn)
    ]
    assert found[0] <= 2
    assert found[1] > 60, "half of 12 x 1,536 bytes in sentences of 61"
    for row in map(strewn.__getitem__, range(12)):
        assert bool((row["labels"] != -100).any())
    with pytest.raises(ValueError, match=r"decoys is 0\.5; it must be 0 to 1, and 0 without background"):
        Mixture("babilong", byte, 1024, 5, tasks="qa1", decoys=0.5)
