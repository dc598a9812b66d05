"""Local files of the language tasks: each form becomes the hub's columns, and a fault is one line with its place."""

import json

import pytest

from language_data import LINES, write_language_data
from titanslab.evaluation.language.local import find_local_files, local_rows
from titanslab.evaluation.language.tasks import TASKS


@pytest.fixture
def folder(tmp_path):
    return write_language_data(tmp_path / "data")


def read(name, folder):
    return list(local_rows(TASKS[name], find_local_files(TASKS[name], folder)))


EXPECTED = {
    "lambada_openai": LINES["lambada_test.jsonl"][0],
    "piqa": {"goal": "open a jar", "sol1": "turn the lid", "sol2": "turn the table", "label": 0},
    "hellaswag": {
        "activity_label": "Roof work",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "endings": ["swims a mile.", "reads a map.", "bakes a cake.", "lays down a tile."],
        "label": "3",
    },
    "winogrande": {
        "sentence": "Ann thanked Eve because _ had helped her.",
        "option1": "Ann",
        "option2": "Eve",
        "answer": "2",
    },
    "arc_easy": {
        "question": "Which of these is a metal?",
        "choices": {"text": ["wood", "iron", "wool", "sand"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    "social_iqa": {
        "context": "Tom lent Kim his bicycle.",
        "question": "How is Kim?",
        "answerA": "angry",
        "answerB": "thankful",
        "answerC": "asleep",
        "label": "2",
    },
    "boolq": {"passage": "Whales breathe air.\nThey live in the sea.", "question": "do whales breathe air", "label": 1},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_local_file_becomes_the_columns_of_the_hub(name, folder):
    rows = read(name, folder)
    assert rows[0] == EXPECTED[name]
    assert len(rows) == 2


def test_wikitext_is_cut_at_titles_and_keeps_every_line(folder):
    pages = [row["page"] for row in read("wikitext", folder)]
    assert [page.split("\n")[0] for page in pages] == [" = Old Mill = ", " = Bridge = "]
    assert " = = Wheel = = " in pages[0]
    whole = (folder / "wikitext2-test.txt").read_text()
    assert " \n" + "\n".join(pages) == whole  # the line before the first title is empty, and no page


def test_a_finished_sentence_of_hellaswag_is_left_whole(folder):
    row = read("hellaswag", folder)[1]
    assert (row["ctx_a"], row["ctx_b"]) == ("Boil the water. Warm the pot first.", "")


def test_a_shared_start_with_a_line_for_a_blank_stays_out_of_the_sentence(folder):
    contexts = ["The file a_b is red and Ann", "The file a_b is red and Eve"]
    record = {"context_options": contexts, "continuation": "saw it.", "gold": 0}
    (folder / "winogrande.jsonl").write_text(json.dumps(record) + "\n")
    row = read("winogrande", folder)[0]
    assert row == {"sentence": "_ saw it.", "option1": contexts[0], "option2": contexts[1], "answer": "1"}


@pytest.mark.parametrize("name", [*EXPECTED, "arc_challenge", "wikitext"])
def test_a_file_with_the_columns_of_the_hub_is_taken(name, folder, tmp_path):
    rows, ready = read(name, folder), tmp_path / "hub"
    ready.mkdir()
    lines = [json.dumps(row | {"id": 7}) + "\n" for row in rows]
    (ready / f"{name}.jsonl").write_text("".join(lines))
    assert read(name, ready) == rows


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("piqa", "piqa-valid.jsonl", '"sol2": "turn the table"}', '"sol2"', "line 1 is not valid JSON"),
        ("piqa", "piqa-valid.jsonl", '"sol1": "turn the lid", ', "", "line 1: sol1 is missing"),
        ("piqa", "piqa-valid-labels.lst", "1", "2", "line 2: the label must be 0 or 1, got '2'"),
        ("piqa", "piqa-valid-labels.lst", "0\n", "", "piqa-valid-labels.lst ends before line 2"),
        ("hellaswag", "hellaswag_val_full.txt", "Break the cup.\n", "", "has 11 lines, and each sample has 6"),
        ("hellaswag", "hellaswag_val_full.txt", "\n0\n", "\n4\n", "lines 7 to 12: label"),
        ("hellaswag", "hellaswag_val_full.txt", "Roof work: ", "", "lines 1 to 6: the context must begin"),
        ("winogrande", "winogrande.jsonl", '"gold": 1', '"gold": 2', "line 1: gold must be a whole number of at most"),
        ("arc_easy", "arc_easy.jsonl", '"gold": 1', '"gold": 4', "line 1: gold is 4, and there are 4 choices"),
        ("arc_easy", "arc_easy.jsonl", "Question: Which of", "Which of", "line 1: query must begin with 'Question: '"),
        ("social_iqa", "siqa_dev_3choice.jsonl", 'B. thankful"', 'B. sad"', "line 1: answer must be one of the"),
        ("boolq", "boolq.jsonl", '"no", "yes"', '"yes", "no"', "line 1: choices must be no and yes"),
        ("boolq", "boolq.jsonl", "\\nQuestion: do", " do", "line 1: query must hold a line"),
        ("lambada_openai", "lambada_test.jsonl", '{"text": "The', '{"txt": "The', "line 1: text is missing"),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_the_fix(name, file, old, new, message, folder):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="leave the task out with --tasks") as caught:
        read(name, folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_named(folder):
    (folder / "wikitext2-test.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"wikitext2-test.txt is not text in UTF-8 \(byte 3\)"):
        read("wikitext", folder)


def test_a_missing_file_is_named_with_its_form(folder):
    (folder / "piqa-valid-labels.lst").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        find_local_files(TASKS["piqa"], folder)
    told = str(caught.value)
    assert "has no piqa-valid-labels.lst; piqa needs piqa-valid.jsonl and piqa-valid-labels.lst" in told
    assert "a JSON object a line with goal, sol1 and sol2" in told
    assert "or piqa.jsonl (a JSON object a line with goal, sol1, sol2, label); --tasks leaves the task out" in told


def test_an_empty_file_is_named(folder):
    for name in ("boolq", "piqa"):
        for file in TASKS[name].files:
            (folder / file).write_text("")
        with pytest.raises(ValueError, match=r"line 1"):
            read(name, folder)
