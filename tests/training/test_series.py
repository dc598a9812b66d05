"""Recipes with [series]: a forecasting model from a CSV file to a run folder, resumed, and from a run before."""

import json

import numpy as np
import pytest
import torch

from titanslab.data.series import SeriesFacts, read_series
from titanslab.runs.loading import load_forecaster
from titanslab.tasks.forecasting import fit_scalers, part_windows
from titanslab.training.recipe import load_recipe, parse_recipe
from titanslab.training.run import train

from .test_best import interrupted, validations
from .test_run import metrics, same_weights, weights


@pytest.fixture(scope="session")
def waves(tmp_path_factory):
    """Two columns with a period of 12 rows, and a little noise."""
    path = tmp_path_factory.mktemp("series") / "waves.csv"
    t = np.arange(400)
    noise = np.random.default_rng(0).normal(size=(2, 400)) * 0.05
    a, b = np.sin(t * np.pi / 6) + noise[0], 30 + 5 * np.cos(t * np.pi / 6) + noise[1]
    path.write_text("date,a,b\n" + "".join(rows(a, b)))
    return path


def rows(a, b):
    start = np.datetime64("2020-01-01T00:00")
    return [f"{start + np.timedelta64(i, 'h')},{x:.5f},{y:.5f}\n" for i, (x, y) in enumerate(zip(a, b, strict=True))]


@pytest.fixture
def series(waves):
    """A recipe as nested values."""
    return {
        "model": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "context_length": 24,
            "prediction_length": 6,
            "patch_length": 8,
            "patch_stride": 4,
        },
        "series": {"file": str(waves), "split": "6:2:2"},
        "training": {
            "epochs": 6,
            "batch_size": 16,
            "learning_rate": 1e-2,
            "warmup_steps": 5,
            "keep": "best",
            "patience": 3,
            "save_every": 20,
            "cpu": True,
        },
    }


def error(folder, file, part="test"):
    facts = SeriesFacts.read(folder)
    found = read_series(file)
    model = load_forecaster(folder)
    lengths = (model.config.context_length, model.config.prediction_length)
    windows = part_windows(found, part, facts.split, lengths, fit_scalers(found, facts.split, "file"), "file")
    assert np.allclose(facts.mean, fit_scalers(found, facts.split, "file")[0].mean)
    with torch.no_grad():
        errors = [
            (model(**{k: v[None] for k, v in w.items()}).prediction_outputs - w["future_values"]).square().mean()
            for w in windows
        ]
    return float(torch.stack(errors).mean())


def test_a_model_learns_the_waves_and_an_interruption_changes_nothing(series, waves, tmp_path, monkeypatch):
    result = train(parse_recipe(series), tmp_path / "run")
    assert error(tmp_path / "run", waves) < 0.05
    losses = validations(tmp_path / "run")
    assert result["best_score"] == min(losses.values())
    assert list(losses) == [14, 28, 42, 56, 70, 80][: len(losses)], (
        "a validation each epoch of 211 windows, and the last"
    )
    assert json.loads((tmp_path / "run" / "series.json").read_text())["columns"] == ["a", "b"]
    assert (tmp_path / "run" / "loss.png").exists()
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (recipe.kind, recipe.data.split, recipe.training.epochs) == ("series", "6:2:2", 6)

    interrupted(series, tmp_path / "again", monkeypatch, 50, micro=1)
    train(parse_recipe(series), tmp_path / "again", resume=True)
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "again"))
    assert [m for m in metrics(tmp_path / "again") if "eval_loss" in m] == [
        m for m in metrics(tmp_path / "run") if "eval_loss" in m
    ]


def test_a_baseline_trains_and_a_run_is_a_start(series, waves, tmp_path):
    series["model"] = {"architecture": "dlinear", "context_length": 24, "prediction_length": 6}
    train(parse_recipe(series), tmp_path / "run")
    before = error(tmp_path / "run", waves, "validation")
    assert before < 0.05
    series["model"] = {"pretrained": str(tmp_path / "run")}
    series["training"] = {"steps": 1, "learning_rate": 1e-9, "warmup_steps": 0, "batch_size": 4, "cpu": True}
    train(parse_recipe(series), tmp_path / "next")
    assert error(tmp_path / "next", waves, "validation") == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("series", {"file": ""}, "series.file is missing"),
        ("series", {"colums": ["a"]}, r"unknown key 'colums' in \[series\]; did you mean 'columns'"),
        ("model", {"architecture": "dlinar"}, "model.architecture is 'dlinar'; allowed: .*did you mean 'dlinear'"),
        ("model", {"horizon": 4}, r"unknown key 'horizon' in \[model\]"),
        (
            "model",
            {"num_input_channels": 2},
            "model.num_input_channels is|unknown key 'num_input_channels'|follows from",
        ),
    ],
)
def test_wrong_recipes(series, section, values, words):
    series[section] |= values
    with pytest.raises(ValueError, match=words):
        parse_recipe(series)


def test_a_file_without_windows(series, waves, tmp_path):
    series["model"]["context_length"] = 300
    with pytest.raises(ValueError, match=r"waves\.csv: the train rows are too few: a window has 300 rows"):
        train(parse_recipe(series), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_kind_of_data_a_recipe(series):
    series["data"] = {"train": "book.txt"}
    with pytest.raises(ValueError, match=r"a recipe has one of the sections \[data\], \[series\]; remove one"):
        parse_recipe(series)
