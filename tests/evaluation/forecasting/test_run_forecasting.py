"""Scores over all windows, and the predictions that they can be computed from again."""

import json

import numpy as np
import pytest
import torch

from titanslab.evaluation.forecasting.run import ForecastingRun, open_stage, run_forecasting
from titanslab.models.forecasting import TitansForForecasting

from .conftest import save


def score(model, data, output, **options):
    run = ForecastingRun(str(model), str(data), output, **options)
    return run_forecasting(run, open_stage(run))


def test_scores_can_be_computed_from_the_files(forecasting_model, series_file, tmp_path):
    summary = score(forecasting_model, series_file, tmp_path / "out")
    assert summary["windows"] == 30 - 4 + 1  # every window with its targets in the 30 test rows
    assert summary["missing"] == 1
    assert summary["targets"] == 27 * 4 * 2 - 4
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    predictions = np.load(tmp_path / "out" / "predictions.npy")
    kept = np.load(tmp_path / "out" / "windows.npz")
    target = kept["values"][kept["starts"][:, None] + np.arange(4)]
    assert np.nanmean((predictions - target) ** 2) == pytest.approx(summary["mse"], rel=1e-6)
    assert np.nanmean(np.abs(predictions - target)) == pytest.approx(summary["mae"], rel=1e-6)
    assert kept["rows"][[0, -1]].tolist() == [120, 146]


def test_predictions_are_the_models_forecasts_of_the_file(forecasting_model, series_file, tmp_path):
    score(forecasting_model, series_file, tmp_path)
    kept = np.load(tmp_path / "windows.npz")
    values = np.genfromtxt(series_file, delimiter=",", skip_header=1, usecols=(1, 2))
    train = values[:90]
    np.testing.assert_allclose(kept["mean"], train.mean(0), rtol=1e-6)
    standardised = (values - train.mean(0)) / train.std(0)
    model = TitansForForecasting.from_pretrained(forecasting_model)
    for window in (0, 26):
        row = kept["rows"][window]
        past = torch.tensor(standardised[None, row - 12 : row], dtype=torch.float32)
        expected = model(past).prediction_outputs[0].detach().numpy()
        np.testing.assert_allclose(np.load(tmp_path / "predictions.npy")[window], expected, atol=1e-5)


def test_the_batch_size_changes_no_score(forecasting_model, series_file, tmp_path):
    found = [score(forecasting_model, series_file, tmp_path / str(size), batch_size=size) for size in (1, 7, 100)]
    for other in found[1:]:
        assert other["mse"] == pytest.approx(found[0]["mse"], rel=1e-6)
        assert other["windows"] == found[0]["windows"]


def test_quantiles_are_scored_and_written_on_request(series_file, tmp_path):
    model = save(tmp_path / "run", series_file, loss="quantile", quantiles=[0.1, 0.5, 0.9])
    summary = score(model, series_file, tmp_path / "out", save_quantiles=True)
    assert set(summary["coverage"]) == {"80%"}
    quantiles = np.load(tmp_path / "out" / "quantiles.npy")
    assert quantiles.shape == (27, 4, 2, 3)
    np.testing.assert_array_equal(quantiles[..., 1], np.load(tmp_path / "out" / "predictions.npy"))


def test_a_failed_run_leaves_no_summary(forecasting_model, series_file, tmp_path, monkeypatch):
    score(forecasting_model, series_file, tmp_path)
    before = (tmp_path / "predictions.npy").read_bytes()
    monkeypatch.setattr(TitansForForecasting, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(forecasting_model, series_file, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.npy", "windows.npz"]
    assert (tmp_path / "predictions.npy").read_bytes() == before


def test_parts_and_splits(forecasting_model, series_file, tmp_path):
    assert score(forecasting_model, series_file, tmp_path, part="validation")["windows"] == 27
    assert score(forecasting_model, series_file, tmp_path, part="train")["windows"] == 90 - 16 + 1
    assert score(forecasting_model, series_file, tmp_path, part="all")["windows"] == 150 - 16 + 1
    assert score(forecasting_model, series_file, tmp_path, split="80/40/20")["windows"] == 17


def test_other_columns_are_named(forecasting_model, series_file, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(series_file.read_text().replace("date,a,b", "date,a,c"))
    with pytest.raises(ValueError, match=r"has no column 'b', which columns names; its columns: 'date', 'a', 'c'"):
        score(forecasting_model, other, tmp_path)
