"""`titans evaluate forecasting`: scores on the screen, files, and one-line errors."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from titanslab.data.series import SeriesFacts
from titanslab.models.forecaster import forecaster

SIZES = {"context_length": 12, "prediction_length": 4, "patch_length": 6, "patch_stride": 3, "num_input_channels": 2}
SIZES |= {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("series") / "mine.csv"
    values = np.random.default_rng(0).normal(size=(120, 2)).cumsum(0)
    dates = pd.date_range("2026-01-01", periods=120, freq="D", name="date")
    pd.DataFrame(values, columns=["a", "b"], index=dates).to_csv(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecasting") / "run"
    torch.manual_seed(0)
    forecaster(None, SIZES).save_pretrained(folder)
    SeriesFacts(["a", "b"], [0.0, 0.0], [1.0, 2.0], "D", "6:2:2").write(folder)
    return folder


def test_prints_and_writes(titans, run, data):
    code, out, err = titans("evaluate", "forecasting", "--model", run, "--data", data, "--online")
    assert code == 0, err
    assert "mine.csv: 120 rows, 2 columns, step D; split 6:2:2, part test" in out
    summary = json.loads((run / "evaluation" / "forecasting" / "mine-test" / "summary.json").read_text())
    assert f"MSE {summary['mse']:.4f}, MAE {summary['mae']:.4f}: 21 windows, all of them (drop_last = False)" in out
    for form in ("frozen", "memory carried", "M_0 learns", "all weights learn", "linear regression, refitted"):
        assert form in out
    folder = run / "evaluation" / "forecasting" / "mine-test"
    names = ["online.json", "online.png", "predictions.npy", "summary.json", "windows.npz"]
    assert sorted(path.name for path in folder.iterdir()) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "RUN", "--data", "none.csv"], "series 'none.csv' does not exist"),
        (["--model", "none", "--data", "DATA"], "model 'none' does not exist"),
        (["--model", "RUN", "--data", "DATA", "--part", "dev"], "part must be one of train, validation, test, all"),
        (["--model", "RUN", "--data", "DATA", "--split", "9:1"], "split must be shares"),
        (["--model", "RUN", "--data", "DATA", "--split", "110/8/2"], "the test rows are too few"),
        (["--model", "RUN"], "Missing option"),
    ],
)
def test_what_is_wrong_takes_one_line(words, message, fails, run, data):
    places = {"RUN": str(run), "DATA": str(data)}
    assert message in fails("evaluate", "forecasting", *(places.get(word, word) for word in words))


def test_a_language_model_does_not_forecast(fails, trained, data):
    line = fails("evaluate", "forecasting", "--model", trained, "--data", data)
    assert "has model_type 'titans', which does not forecast; train one from a recipe with a section [series]" in line


def test_a_model_without_the_facts_of_its_data_is_named(fails, run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "series.json").unlink()
    line = fails("evaluate", "forecasting", "--model", tmp_path / "run", "--data", data)
    assert "has no series.json, which titans train writes for a series" in line


def test_a_forecasting_model_speaks_no_language(fails, run, text_file):
    line = fails("evaluate", "--model", run, "--data", text_file)
    assert "forecasts series (model_type 'titans_forecasting'), and a language model is needed here" in line


def test_several_series_are_no_stream(fails, run, tmp_path):
    long = tmp_path / "long.csv"
    rows = [f"{name},{day},{day % 5}" for name in "AB" for day in range(99)]
    long.write_text("unique_id,ds,y\n" + "\n".join(rows) + "\n")
    folder = tmp_path / "run"
    forecaster("linear", {"context_length": 12, "prediction_length": 4}).save_pretrained(folder)
    SeriesFacts(["y"], form="long").write(folder)
    line = fails("evaluate", "forecasting", "--model", folder, "--data", long, "--online")
    assert "learning on a stream needs one series with its columns, got 2 series" in line


def test_long_files_are_scored(titans, tmp_path):
    test_file = tmp_path / "long.csv"
    rows = [f"{name},{day},{day % 5 * scale}" for name, scale in (("A", 1), ("B", 1000)) for day in range(99)]
    test_file.write_text("unique_id,ds,y\n" + "\n".join(rows) + "\n")
    folder = tmp_path / "run"
    forecaster("linear", {"context_length": 12, "prediction_length": 4}).save_pretrained(folder)
    SeriesFacts(["y"], form="long").write(folder)
    code, out, err = titans("evaluate", "forecasting", "-m", folder, "-d", test_file, "-o", tmp_path / "out")
    assert code == 0, err
    assert "2 series, 198 rows" in out
    kept = np.load(tmp_path / "out" / "windows.npz")
    np.testing.assert_allclose(*np.split(kept["values"], 2))  # each series has a scale of its own
    assert kept["series"].tolist() == sorted(kept["series"].tolist())
