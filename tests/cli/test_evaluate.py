"""`titans evaluate`: numbers on the screen, JSON and PNG beside the model."""

import json
import shutil

import pytest

from titanslab.cli.evaluate_text import short_names


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


def test_several_models_share_a_table_a_picture_and_a_file(titans, trained, talker, text_file, tmp_path):
    output = tmp_path / "out"
    together = (
        "evaluate",
        "--model",
        trained,
        "--model",
        talker,
        "--data",
        text_file,
        "-c",
        "32",
        "--max-tokens",
        "300",
    )
    code, out, err = titans(*together, "--output", output, "--whole-windows")
    assert code == 0, err
    assert all(f" {name} " in out for name in ("run", "talker"))
    assert "The tokenizers differ" not in out
    content = json.loads((output / "perplexity-lines.json").read_text())
    assert [one["model"] for one in content["models"]] == [str(trained), str(talker)]
    assert {result["tokens"] for one in content["models"] for result in one["results"]} == {288}
    assert content["whole_windows"]
    assert sorted(path.name for path in output.iterdir()) == ["perplexity-lines.json", "perplexity-lines.png"]
    alone = tmp_path / "alone"
    assert titans("evaluate", "-m", talker, *together[5:], "--output", alone, "--whole-windows")[0] == 0
    single = json.loads((alone / "perplexity-lines.json").read_text())
    assert single["results"] == content["models"][1]["results"]


def test_models_of_two_tokenizers_are_compared_by_the_byte(titans, talker, text_file, tmp_path):
    other = shutil.copytree(talker, tmp_path / "other")
    whole = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(whole | {"normalizer": {"type": "Lowercase"}}))
    code, out, err = titans(
        *("evaluate", "-m", talker, "-m", other, "-d", text_file, "-o", tmp_path / "out", "--max-tokens", "99")
    )
    assert code == 0, err
    assert "The tokenizers differ: compare bits/byte" in " ".join(out.split())


def test_several_models_need_a_folder_and_a_context_that_all_can_read(fails, trained, talker, text_file, tmp_path):
    both = ("evaluate", "-m", trained, "-m", talker, "-d", text_file)
    assert "2 models are measured together; give --output FOLDER" in fails(*both)
    short = shutil.copytree(talker, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    line = fails("evaluate", "-m", talker, "-m", short, "-d", text_file, "-o", tmp_path / "out", "-c", "32")
    assert f"--context-length is 32, but {short} reads at most 16 tokens" in line
    assert not (tmp_path / "out").exists()


def test_models_of_the_same_name_are_told_apart_by_their_folders():
    assert short_names(["a/x/run", "b/y/run", "c/run"]) == ["x/run", "y/run", "c/run"]
    assert short_names(["a/x", "b/y"]) == ["x", "y"]
