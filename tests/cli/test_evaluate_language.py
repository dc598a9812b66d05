"""`titans evaluate language`: files, table, and errors in one line before a model is loaded."""

import json

import pytest

from language_data import write_language_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_language_data(tmp_path_factory.mktemp("language") / "data")


def test_writes_json_and_markdown_and_goes_on(titans, trained, data, tmp_path):
    pytest.importorskip("lm_eval")
    output = tmp_path / "new" / "out"
    command = ("evaluate", "language", "--model", trained, "--data", data, "--output", output, "--device", "cpu")
    code, shown, error = titans(*command, "--tasks", "piqa")
    assert code == 0, error
    assert "piqa (1 of 1)" in error
    code, shown, error = titans(*command, "--tasks", "piqa,arc_easy")
    assert code == 0, error
    assert "arc_easy (2 of 2)" in error
    assert "piqa (" not in error
    assert all(text in shown for text in ("PIQA acc", "ARC-e acc", "zero shots"))
    content = json.loads((output / "summary.json").read_text())
    assert set(content["table"]) == {"PIQA acc", "ARC-e acc"}
    assert content["average"] is None
    assert {(task["task"], task["samples"], task["version"]) for task in content["tasks"]} == {
        ("piqa", 2, 1.0),
        ("arc_easy", 2, 1.0),
    }
    assert content["table"]["PIQA acc"]["standard_error"] is not None
    assert content["versions"]["lm_eval"]
    assert (output / "table.md").read_text().startswith("| model | PIQA acc | ARC-e acc |\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "RUN", "--tasks", "piqa,piqqa"], "--tasks has 'piqqa'; it must be one or more of wikitext"),
        (["--model", "RUN", "--data", "nowhere"], "--data 'nowhere' does not exist; give the folder that holds"),
        (["--model", "RUN", "--data", "DATA/boolq.jsonl"], "boolq.jsonl' is a file; give the folder that holds"),
        (["--model", "RUN", "--data", "EMPTY", "--tasks", "boolq"], "has no boolq.jsonl; boolq needs boolq.jsonl (a"),
        (["--model", "nowhere"], "model 'nowhere' does not exist"),
        (["--model", "RUN", "--data", "DATA", "--output", "DATA/boolq.jsonl"], "is a file; give a folder"),
        (["--model", "RUN", "--limit", "0"], "Invalid value for '--limit'"),
        ([], "Missing option '--model'"),
        (["--model", "RUN", "--shots", "5"], "No such option: --shots"),
    ],
)  # fmt: skip
def test_what_is_wrong_takes_one_line(words, message, fails, trained, data, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(trained), "DATA": str(data), "EMPTY": str(tmp_path / "empty")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert message in fails("evaluate", "language", *words)


def test_a_damaged_line_is_found_before_any_task_runs(fails, trained, data, tmp_path):
    pytest.importorskip("lm_eval")
    folder = write_language_data(tmp_path / "data")
    text = (folder / "boolq.jsonl").read_text()
    (folder / "boolq.jsonl").write_text(text.replace('"gold": 0', '"gold": "no"'))
    line = fails("evaluate", "language", "--model", trained, "--data", folder, "-o", tmp_path / "out")
    assert "boolq.jsonl, line 2: gold must be a whole number, got str 'no'" in line


def test_the_help_lists_the_verb_and_every_task(titans):
    from titanslab.evaluation.language.tasks import TASKS

    code, shown, _ = titans("evaluate", "--help")
    assert code == 0
    assert "Language modelling and common sense" in " ".join(shown.split())
    code, shown, _ = titans("evaluate", "language", "--help")
    assert code == 0
    words = " ".join(shown.replace("│", " ").split())
    assert all(name in words for name in TASKS)
