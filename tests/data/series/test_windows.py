"""Windows, scalers and the facts in a model's folder."""

import numpy as np
import pytest
import torch

from titanslab.data.series import Scaler, Series, SeriesFacts, SeriesWindows


def series(rows, columns=2):
    values = np.arange(rows * columns, dtype=np.float64).reshape(rows, columns)
    return Series(values, tuple("abc"[:columns]))


def test_every_window_is_there():
    windows = SeriesWindows([series(10)], 4, 2, rows=[(3, 9)])
    firsts = [int(item["past_time_index"]) for item in windows]
    assert firsts == [0, 1, 2, 3]  # the first target is row 3 at the earliest, and the history has 4 rows
    assert [windows.place(i) for i in (0, 3)] == [(0, 4), (0, 7)]
    windows = SeriesWindows([series(10)], 4, 2, rows=[(5, 9)])
    assert [int(item["past_time_index"]) for item in windows] == [1, 2, 3]
    last = windows[len(windows) - 1]
    assert last["past_values"].tolist() == series(10).values[3:7].tolist()
    assert last["future_values"].tolist() == series(10).values[7:9].tolist()


def test_missing_values_are_zeros_with_a_mask():
    one = series(7)
    one.values[[1, 5], [0, 1]] = np.nan
    item = SeriesWindows([one], 4, 2)[0]
    assert item["past_values"][1].tolist() == [0.0, 3.0]
    assert item["past_observed_mask"][1].tolist() == [False, True]
    assert item["future_observed_mask"].tolist() == [[True, True], [True, False]]
    assert all(item[name].isfinite().all() for name in item)


def test_series_of_other_lengths_and_series_that_are_too_short():
    windows = SeriesWindows([series(8), series(2), series(5)], 4, 2, pad=True)
    assert [windows.place(i) for i in range(len(windows))] == [(0, 4), (0, 5), (0, 6), (2, 3)]
    assert windows.without == 1
    padded = windows[3]
    assert padded["past_observed_mask"].all(1).tolist() == [False, True, True, True]
    assert int(padded["past_time_index"]) == -1
    with pytest.raises(
        ValueError, match="x: the test rows are too few: a window has 4 rows of history and 2 of horizon"
    ):
        SeriesWindows([series(5)], 4, 2).check("x", "test")


def test_the_scaler_is_that_of_scikit_learn():
    values = np.random.default_rng(0).normal(5, 3, (50, 3))
    values[:, 1] = 0.1  # constant, and its deviation by rounding is not 0
    values[3, 0] = np.nan
    scaler = Scaler.fit(values)
    np.testing.assert_allclose(scaler.mean, np.nanmean(values, 0))
    np.testing.assert_allclose(scaler.std, [np.nanstd(values[:, 0]), 1.0, np.nanstd(values[:, 2])])
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values)), values)
    scaled = SeriesWindows([Series(values, ("a", "b", "c"))], 40, 5, scalers=[scaler])[0]["past_values"]
    expected = torch.from_numpy(scaler.transform(values)[:40].astype(np.float32)).nan_to_num()
    assert torch.equal(scaled, expected)


def test_facts_are_written_and_read(tmp_path):
    facts = SeriesFacts(["a", "b"], [0.5, 1.0], [2.0, 1e-9], "h", "ETTh1")
    facts.write(tmp_path)
    read = SeriesFacts.read(tmp_path)
    assert read == facts
    assert read.scaler.std.tolist() == [2.0, 1e-9]
    with pytest.raises(FileNotFoundError, match=r"has no series\.json, which titans train writes"):
        SeriesFacts.read(tmp_path / "none")
    text = (tmp_path / "series.json").read_text()
    (tmp_path / "series.json").write_text(text.replace("2.0,", "0.0,"))
    with pytest.raises(ValueError, match="std"):
        SeriesFacts.read(tmp_path)
    (tmp_path / "series.json").write_text(text.replace("0.5,", ""))
    with pytest.raises(ValueError, match="must be equally long"):
        SeriesFacts.read(tmp_path)
