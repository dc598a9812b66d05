"""Which columns, rows and scale of a file a model reads, and which files it refuses."""

import re

import numpy as np
import pandas as pd
import pytest

from titanslab.data.series import SeriesForm
from titanslab.forecasting.history import open_source, read_history, times_after

T = np.arange(40)


def notes(history):
    return "\n".join(history.notes)


def test_columns_of_the_training_are_taken_by_name_with_its_scale(quantile_model, write_csv):
    file = write_csv(b=T * 1.0, station=["north"] * 40, a=T + 100.0)
    history = read_history(file, open_source(quantile_model))
    assert history.series[0].columns == ("a", "b")
    assert history.series[0].values[0].tolist() == [100.0, 0.0]
    assert (history.scalers[0].mean.tolist(), history.scalers[0].std.tolist()) == ([10.0, -5.0], [2.0, 3.0])
    assert history.notes == []


def test_other_columns_are_standardised_by_their_own_rows(quantile_model, write_csv):
    history = read_history(write_csv(x=T * 2.0, y=T * 1.0, z=-T * 1.0), open_source(quantile_model))
    assert history.series[0].columns == ("x", "y", "z")
    assert np.allclose(history.scalers[0].mean, [39, 19.5, -19.5])
    assert "trained on a, b, and not on x, y, z" in notes(history)
    one = read_history(write_csv(), open_source(quantile_model), SeriesForm(columns=["b"]))
    assert (one.series[0].columns, one.scalers[0].mean.tolist(), one.notes) == (("b",), [-5.0], [])


def test_a_model_without_facts_takes_any_file(save_model, write_csv):
    history = read_history(write_csv(), open_source(save_model()))
    assert history.series[0].columns == ("a", "b")
    assert np.allclose(history.scalers[0].transform(history.series[0].values).std(0), 1)
    assert "columns a, b: the model has no scale" in notes(history)


def test_each_series_of_a_long_file_has_its_own_scale(quantile_model, tmp_path):
    days = pd.date_range("2026-01-01", periods=40)
    frame = pd.concat(pd.DataFrame({"unique_id": n, "ds": days, "y": T * s}) for n, s in (("u", 1.0), ("v", 9.0)))
    frame.groupby("unique_id").tail(30)[3:].to_csv(tmp_path / "long.csv", index=False)
    history = read_history(tmp_path / "long.csv", open_source(quantile_model))
    assert [one.name for one in history.series] == ["u", "v"]
    assert history.scalers[1].std[0] > 8 * history.scalers[0].std[0]
    frame.groupby("unique_id").tail(30)[10:].to_csv(tmp_path / "long.csv", index=False)
    history = read_history(tmp_path / "long.csv", open_source(quantile_model))
    assert "series 'u' (20 rows) is shorter than the 24 rows" in notes(history)
    assert "steps of h, and" in notes(history)


def test_missing_values_and_a_cycle_are_noted(save_model, write_csv):
    values = np.where((T == 30) | (T == 2), np.nan, T)
    file = write_csv(a=values)
    history = read_history(file, open_source(save_model(cycle=6)))
    assert "missing in the rows that the model reads: 1 value;" in notes(history)
    assert "a learned cycle of 6 rows" in notes(history)


def test_times_go_on_by_the_step_of_the_file(quantile_model, write_csv):
    source = open_source(quantile_model)
    for step, last in (("15min", "2026-01-01T10:30"), ("MS", "2029-07-01"), ("B", "2026-03-02")):
        file = write_csv(step=step)
        times = times_after(read_history(file, source), 3, file)[0]
        assert times[-1] == np.datetime64(last), step
    file = write_csv(step="YS")
    with pytest.raises(ValueError, match="--horizon 300 ends beyond the last date"):
        times_after(read_history(file, source), 300, file)


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        (
            {"x": T, "y": T, "z": T},
            {"channel_mixing": "variates"},
            "has 3 columns (x, y, z), and the model was trained on 2",
        ),
        ({"a": T}, {"scaling_affine": True}, "parameters for each of them (scaling_affine); give a file with 2"),
        ({"x": T[:20], "y": T[:20]}, {}, "has 20 rows, and the model reads 24"),
        ({"a": T, "b": np.where(T > 10, np.nan, T)}, {}, "column 'b' has no value in its last 24 rows"),
        ({"x": ["warm"] * 40}, {}, "column 'x' holds text"),
        ({"a": ["warm"] * 40, "b": T}, {}, "column 'a' holds text"),
    ],
)
def test_a_file_that_the_model_cannot_take_is_refused(save_model, write_csv, columns, options, words):
    facts = {"columns": ["a", "b"], "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    source = open_source(save_model(facts, num_input_channels=2, **options))
    with pytest.raises(ValueError, match=re.escape(words)):
        read_history(write_csv(rows=len(next(iter(columns.values()))), **columns), source)


def test_columns_of_their_own_parameters_may_have_other_names(save_model, write_csv):
    facts = {"columns": ["a", "b"], "mean": [1.0, 2.0], "std": [3.0, 4.0]}
    source = open_source(save_model(facts, num_input_channels=2, scaling_affine=True))
    history = read_history(write_csv(x=T, y=T), source)
    assert history.scalers[0].mean.tolist() == [1.0, 2.0]
    assert "columns x, y stand for a, b" in notes(history)


def test_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "titans", "hidden_size": 8}')
    with pytest.raises(ValueError, match="is not a forecasting model"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(tmp_path / "none")
