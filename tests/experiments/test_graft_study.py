"""The study of grafts: rows with and without memories on a small base, their controls and facts, and the table."""

import json

import pytest

from graft_base import save_base
from titanslab.cli import main
from titanslab.experiments.graft_score import Options
from titanslab.experiments.study_file import load_study

LINE = "The river ran under an old bridge, where nobody had crossed since winter came to town; so they said. "
STUDY = """
title = "Two small grafts"
[files]
base = { needed = true, to = ["graft.base"] }
[texts]
train = ["data.train"]
validation = ["score.data"]
train_excerpt = ["data.task_options.background"]
[score]
verb = "graft"
values = ["on", "off", "other", "facts 60"]
[score.options]
documents = 2
tokens = 60
first = 20
facts = [60]
fact_samples = 3
[base.graft]
base = "base"
layers = "all"
window_size = 16
num_heads = 2
head_dim = 8
chunk_size = 8
train = "all"
control_documents = 1
control_tokens = 32
[base.data]
train = "books"
sequence_length = 40
task = "recall"
task_share = 0.25
[base.data.task_options]
template = " {key}={value}."
num_facts = 1
fact_every = 4
value_digits = 1
[base.training]
steps = 4
batch_size = 2
warmup_steps = 1
log_every = 1
cpu = true
[rows.memory]
[rows.window]
graft = { layers = "none" }
"""


def test_from_a_base_to_a_table(in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(STUDY)
    save_base(tmp_path / "base")
    for number in range(4):
        (tmp_path / f"{'train' if number < 2 else 'validation'}-{number}.txt").write_text(f"{number}. {LINE * 20}")
    words = ["--data", "train-0.txt", "--data", "train-1.txt", "--validation", "validation-2.txt"]
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "own.toml", "--base", "base", *words, "--validation", "validation-3.txt"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "runs/own/results.json").read_text())["results"]
    scores = {result["model"]: result["score"] for result in results}
    assert scores["memory"]["options"] == vars(Options(2, 60, 20, None, [60], 3))
    assert scores["window"]["other"] is None
    assert scores["window"]["on"] == scores["window"]["off"]
    assert scores["memory"]["on"] != scores["memory"]["off"]
    assert 0 <= scores["memory"]["facts 60"] <= 100
    assert "facts 60 off" in scores["memory"]
    assert "facts 60 off" not in scores["window"]
    assert "| model | on | off | other | facts 60 |" in shown
    assert f"| memory | {scores['memory']['on']:.3f} | {scores['memory']['off']:.3f} |" in shown
    assert f"| window | {scores['window']['on']:.3f} | {scores['window']['off']:.3f} |  |" in shown


def test_the_study_of_the_package_has_controls_that_are_trained_alike():
    study = load_study("graft")
    rows = study.sets["main"].rows
    recipes = {row: study.recipes("main", row, ["base"], study.placeholders)[0] for row in rows}
    memory, window, full = (recipes[row] for row in ("memory", "window", "full"))
    assert (window.model.layers, full.model.layers, full.model.window_size) == ("none", "none", "all")
    for other in (window, full):
        assert (other.model.lora, other.training.learning_rate) == (memory.model.lora, memory.training.learning_rate)
        tokens = [r.training.steps * r.training.batch_size * r.data.sequence_length for r in (memory, other)]
        assert tokens[0] == tokens[1]
