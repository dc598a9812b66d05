"""Splits of the named sets and of other series, and scores."""

import numpy as np
import pytest

from titanslab.data.series import Scaler, Series, SeriesForm
from titanslab.tasks.forecasting import (
    NAMED,
    Scores,
    constant_columns,
    fit_scalers,
    form_of,
    part_windows,
    split_name,
    split_rows,
)


@pytest.mark.parametrize(
    ("split", "rows", "train", "validation", "test"),
    [
        ("ETTh1", 17420, 8640, (8640, 11520), (11520, 14400)),
        ("ettm2", 69680, 34560, (34560, 46080), (46080, 57600)),
        ("Weather", 52696, 36887, (36887, 42157), (42157, 52696)),
        ("Exchange", 7588, 5311, (5311, 6071), (6071, 7588)),
        ("6:2:2", 100, 60, (60, 80), (80, 100)),
        ("50/20/10", 100, 50, (50, 70), (70, 80)),
    ],
)
def test_splits(split, rows, train, validation, test):
    assert split_rows(split, rows, "x") == {"train": (0, train), "validation": validation, "test": test}


def test_a_set_is_found_by_its_files_name():
    names = ["a/ETTh1.csv", "weather.csv.gz", "electricity.csv", "exchange_rate.csv", "mine.csv"]
    assert [split_name(name) for name in names] == ["ETTh1", "Weather", "ECL", "Exchange", "7:1:2"]
    assert form_of("weather").steps == "rows"
    assert form_of("7:1:2").steps == "check"
    assert form_of("ETTh1", SeriesForm(steps="fill")).steps == "fill"
    assert all(split_name(f"{file}.csv") == name for name, one in NAMED.items() for file in one.files)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("ETTh1", "x has 100 rows, and the split 'ETTh1' needs 14,400; give another split, such as '7:1:2'"),
        ("wether", "did you mean 'Weather'"),
        ("7:1", "split must be shares"),
        ("0:0:0", "has no share above 0"),
    ],
)
def test_wrong_splits_are_named(split, message):
    with pytest.raises(ValueError, match=message):
        split_rows(split, 100, "x")


def test_windows_of_the_parts_score_every_target_of_the_part():
    series = [Series(np.random.default_rng(0).normal(size=(100, 2)), ("a", "b"))]
    scalers = fit_scalers(series, "7:1:2", "x")
    np.testing.assert_allclose(scalers[0].mean, series[0].values[:70].mean(0))
    lengths = (8, 4)
    counts = {p: len(part_windows(series, p, "7:1:2", lengths, scalers, "x")) for p in ("train", "validation", "test")}
    assert counts == {"train": 70 - 12 + 1, "validation": 10 - 4 + 1, "test": 20 - 4 + 1}
    test = part_windows(series, "test", "7:1:2", lengths, scalers, "x")
    assert test.place(0) == (0, 80)
    assert test.place(len(test) - 1) == (0, 96)
    with pytest.raises(ValueError, match="x: the validation rows are too few"):
        part_windows(series, "validation", "7:1:2", (8, 11), scalers, "x")
    with pytest.raises(ValueError, match="part must be one of train, validation, test, all"):
        part_windows(series, "dev", "7:1:2", lengths, scalers, "x")


def test_constant_columns_are_named():
    values = np.random.default_rng(0).normal(size=(20, 3))
    values[:14, 1] = 3.0
    values[:, 2] = np.nan
    assert constant_columns([Series(values, ("a", "b", "c"))], "7:1:2", "x") == ["b", "c"]
    assert Scaler.fit(values[:14]).std[1:].tolist() == [1.0, 1.0]


def test_scores_are_the_plain_means_and_batches_change_nothing():
    rng = np.random.default_rng(0)
    target, forecast = rng.normal(size=(2, 7, 4, 3))
    quantiles = np.sort(rng.normal(size=(7, 4, 3, 3)), -1)
    observed = rng.random((7, 4, 3)) > 0.2
    found = []
    for size in (7, 2):
        scores = Scores((0.1, 0.5, 0.9))
        for i in range(0, 7, size):
            part = slice(i, i + size)
            scores.add(forecast[part], target[part], observed[part], quantiles[part])
        found.append(scores.summary(["a", "b", "c"]))
    error = (forecast - target)[observed]
    assert found[0]["mse"] == pytest.approx((error**2).mean())
    assert found[0]["mae"] == pytest.approx(np.abs(error).mean())
    assert found[0]["windows"] == 7
    assert found[0]["targets"] == observed.sum()
    assert found[1]["mse"] == pytest.approx(found[0]["mse"], rel=1e-12)
    column = (forecast - target)[..., 1][observed[..., 1]]
    assert found[0]["columns"]["b"]["mae"] == pytest.approx(np.abs(column).mean())
    step = (forecast - target)[:, 2][observed[:, 2]]
    assert found[0]["mse_by_step"][2] == pytest.approx((step**2).mean())
    inside = ((target > quantiles[..., 0]) & (target < quantiles[..., 2]))[observed].mean()
    assert found[0]["coverage"] == {"80%": pytest.approx(inside)}
    lack = (target[..., None] - quantiles)[observed]
    levels = np.array([0.1, 0.5, 0.9])
    assert found[0]["pinball"] == pytest.approx(np.where(lack > 0, levels * lack, (levels - 1) * lack).mean())


def test_a_score_needs_a_target():
    scores = Scores()
    scores.add(np.zeros((1, 2, 1)), np.zeros((1, 2, 1)), np.zeros((1, 2, 1), bool))
    with pytest.raises(ValueError, match="no target of the windows was observed"):
        scores.summary(["a"])
