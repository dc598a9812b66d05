"""Studies whose rows a verb of `titans evaluate` measures: forecasting from files of a folder to a table of groups."""

import json
import math
import random
from pathlib import Path

import pytest

from titanslab.cli import main
from titanslab.experiments.plan import Choice, listing, make_jobs
from titanslab.experiments.study_file import load_study
from titanslab.experiments.text_tables import scores

STUDY = """
title = "Two rows on three sets"
run = ["a_4", "a_8", "b_4"]
[folder]
to = ["series.file"]
[score]
verb = "forecasting"
values = ["mse", "mae"]
[paper]
source = "Somebody, table 1"
[paper.tables.mse]
columns = ["A"]
[paper.tables.mse.rows]
linear = [0.5]
[base.model]
context_length = 16
prediction_length = 4
[base.series]
file = "a.csv"
split = "6:2:2"
[base.training]
epochs = 1
keep = "best"
batch_size = 32
learning_rate = 1e-2
warmup_steps = 1
cpu = true
[sets.a_4]
group = "A"
[sets.a_4.rows.linear.model]
architecture = "linear"
[sets.a_4.rows.lmm.model]
hidden_size = 8
[sets.a_8]
group = "A"
rows_of = "a_4"
base = { model = { prediction_length = 8 } }
[sets.b_4]
rows_of = "a_4"
base = { series = { file = "b.csv" } }
"""


@pytest.fixture
def folder(tmp_path):
    """A study and a folder with two series, one of them compressed."""
    import gzip

    (tmp_path / "own.toml").write_text(STUDY)
    data = tmp_path / "data"
    data.mkdir()
    text = "x,y\n" + "".join(f"{math.sin(i / 3):.4f},{math.cos(i / 5) + i / 100:.4f}\n" for i in range(200))
    (data / "a.csv").write_text(text)
    (data / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def run(words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def test_from_files_to_a_table(in_process, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = ["reproduce", "own.toml", "--data", "data", "--jobs", "2"]
    run([*words, "--rows", "linear"])
    shown = capsys.readouterr().out
    work = folder / "runs" / "own"
    results = json.loads((work / "results.json").read_text())["results"]
    assert [r["set"] for r in results] == ["a_4", "a_8", "b_4"]
    assert [r["parameters"] for r in results] == [16 * 4 + 4, 16 * 8 + 8, 16 * 4 + 4]
    each = {r["set"]: r["score"]["mse"] for r in results}
    assert f"| linear | {(each['a_4'] + each['a_8']) / 2:.3f} | {each['b_4']:.3f} | 0.5 |" in shown
    assert "| model | A | b_4 | A (paper) |" in shown
    assert "**Mean absolute error, test**" in shown
    assert not list(work.glob("*/*/score")), "predictions are deleted"
    saved = work / "a_4" / "linear-seed0" / "score.json"
    before = saved.stat().st_mtime_ns
    run([*words, "--rows", "linear"])
    assert saved.stat().st_mtime_ns == before


def test_a_group_has_no_mean_of_a_part_of_its_sets(folder):
    study = load_study(str(folder / "own.toml"))
    some = [{"set": "a_4", "model": "lmm", "seed": 0, "score": {"mse": 1.0, "mae": 1.0}}]
    whole = [*some, {"set": "a_8", "model": "lmm", "seed": 0, "score": {"mse": 3.0, "mae": 2.0}}]
    assert scores(study, some) == {}
    assert scores(study, whole) == {"mse": {"A": {"lmm": [2.0]}}, "mae": {"A": {"lmm": [1.5]}}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": []}, "--data must be the folder with the files of the study own; got"),
        ({"data": ["nowhere"]}, "--data must be the folder"),
        ({"data": ["data"], "validation": ["x"]}, "--validation is not used by the study own"),
    ],
)
def test_wrong_folders(folder, monkeypatch, options, words):
    monkeypatch.chdir(folder)
    study = load_study("own.toml")
    with pytest.raises(ValueError, match=words):
        make_jobs(study, Choice(Path("runs/own"), **options))


def test_an_unknown_verb(folder):
    (folder / "own.toml").write_text(STUDY.replace('verb = "forecasting"', 'verb = "forecast"'))
    with pytest.raises(ValueError, match=r"own\.toml, sets\.a_4: score\.verb is 'forecast'; allowed: forecasting, dna"):
        load_study(str(folder / "own.toml"))


def test_a_missing_file_is_named_with_its_set(folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path("data/b.csv.gz").unlink()
    study = load_study("own.toml")
    with pytest.raises(FileNotFoundError, match=r"--data 'data' holds no 'b\.csv', which the set b_4 needs"):
        make_jobs(study, Choice(Path("runs/own"), data=["data"]))
    assert make_jobs(study, Choice(Path("runs/own"), data=["data"], sets="a_4"))


def test_dna_from_a_table_to_accuracies(in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    lines = [f"{''.join(draw.choices('ACGT', k=60))}\t{i % 2}\n" for i in range(60)]
    (tmp_path / "human_enhancers_cohn.tsv").write_text("sequence\tlabel\n" + "".join(lines))
    small = ["hidden_size=8", "intermediate_size=8", "num_hidden_layers=1", "num_attention_heads=1"]
    sets = [word for option in small for word in ("--set", f"model.{option}")]
    words = ["reproduce", "dna", "--data", ".", "--sets", "enhancers_cohn", "--rows", "lmm", "--budget", "0.1"]
    run([*words, *sets])
    (result,) = json.loads((tmp_path / "runs/dna-budget-0.1/results.json").read_text())["results"]
    assert result["score"]["sequences"] == 12, "a fifth is set aside"
    assert 0 <= result["score"]["accuracy"] <= 1
    assert f"| lmm | {result['score']['accuracy']:.3f} |" in capsys.readouterr().out
    assert "epochs = 1.0" in result["training"]["recipe"]


def test_the_study_of_the_package():
    study = load_study("forecasting")
    rows = listing(study, "ETTh1_96,Weather_720")
    assert len(study.sets) == len(study.run) == 20
    assert {part.group for part in study.sets.values()} == {"ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather"}
    sizes = {(name, row): count for name, row, count, _, _ in rows}
    assert sizes["ETTh1_96", "none"] < sizes["ETTh1_96", "lmm"]
    for row in ("attention", "gated_deltanet"):
        assert sizes["ETTh1_96", row] == pytest.approx(sizes["ETTh1_96", "lmm"], rel=0.015)
    recipe = study.recipes("Weather_720", "lmm", ["base"])[0]
    assert (recipe.data.file, recipe.model.options["prediction_length"]) == ("weather.csv", 720)
