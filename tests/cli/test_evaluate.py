"""`titans evaluate`: numbers on the screen, JSON and PNG beside the model."""

import json

import pytest


def test_writes_json_and_picture(titans, trained, text_file, tmp_path):
    output = tmp_path / "new" / "folder"
    code, out, err = titans(
        *("evaluate", "--model", trained, "--data", text_file, "--output", output, "--max-tokens", "300"),
        *("--context-length", "16", "--context-length", "64"),
    )
    assert code == 0, err
    assert "bits/byte" in out
    assert str(output / "perplexity-lines.json") in out
    content = json.loads((output / "perplexity-lines.json").read_text())
    assert [result["context_length"] for result in content["results"]] == [16, 64]
    assert {result["tokens"] for result in content["results"]} == {300}
    assert content["results"][1]["positions"][-1]["last"] == 64
    assert content["versions"]["titanslab"]
    assert sorted(path.name for path in output.iterdir()) == ["perplexity-lines.json", "perplexity-lines.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "TEXT"], "needs --model RUN and --data PATH"),
        (["--model", "RUN"], "needs --model RUN and --data PATH"),
        (["--model", "RUN", "--data", "none.txt"], "'none.txt' does not exist"),
        (["--model", "none", "--data", "TEXT"], "model 'none' does not exist"),
        (["--model", "RUN", "--data", "TEXT", "--output", "TEXT"], "is a file; give a folder"),
        (["--model", "RUN", "--data", "TEXT", "-c", "0"], "Invalid value for '--context-length'"),
    ],
)
def test_what_is_wrong_takes_one_line(words, message, fails, trained, text_file):
    places = {"RUN": str(trained), "TEXT": str(text_file)}
    assert message in fails("evaluate", *(places.get(word, word) for word in words))


def test_empty_data_writes_nothing(fails, trained, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    line = fails("evaluate", "-m", trained, "-d", tmp_path / "empty.txt", "-o", tmp_path / "out")
    assert "holds no token to predict" in line
    assert not (tmp_path / "out").exists()
