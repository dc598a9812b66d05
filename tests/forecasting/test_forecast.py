"""The forecast after the end of a series: the model's own, cut or iterated; its table and its picture."""

import numpy as np
import pandas as pd
import pytest
import torch

from titanslab.data.series import Scaler, Series, read_series
from titanslab.forecasting.files import forecast_table, write_forecasts
from titanslab.forecasting.forecast import forecast_series, mixture
from titanslab.forecasting.picture import bands, plot_forecasts
from titanslab.runs.loading import load_forecaster


def make_series(rows=40, columns=2, name=""):
    t = np.arange(rows)[:, None]
    values = 10 + np.sin(t / (3 + np.arange(columns)))
    times = pd.date_range("2026-01-01", periods=rows, freq="h").to_numpy()
    return Series(values, tuple("abc"[:columns]), times, "h", name)


def run(model, series, horizon):
    scalers = [Scaler.fit(one.values) for one in series]
    return forecast_series(model, series, scalers, horizon, [one.times_after(horizon) for one in series])


def test_it_is_the_forecast_of_the_model_on_the_scale_of_the_data(quantile_model):
    model, series = load_forecaster(quantile_model), make_series()
    scaler = Scaler(np.array([10.0, -5.0]), np.array([2.0, 3.0]))
    found = forecast_series(model, [series], [scaler], 8, [series.times_after(8)])[0]
    past = torch.from_numpy(scaler.transform(series.values)[None, -24:].astype(np.float32))
    with torch.inference_mode():
        output = model(past)
    wanted = output.prediction_outputs[0].double().numpy() * [2, 3] + [10, -5]
    assert np.allclose(found.values, wanted, rtol=1e-6)
    bands = output.quantile_outputs[0].double().numpy() * np.array([[2], [3]]) + np.array([[10], [-5]])
    assert np.allclose(found.quantiles, bands, rtol=1e-6)
    assert (found.levels, found.starts) == ((0.1, 0.5, 0.9), (0,))
    short = forecast_series(model, [series], [scaler], 3, [series.times_after(3)])[0]
    assert np.array_equal(short.values, found.values[:3])


def test_a_longer_horizon_reads_its_own_forecasts(save_model):
    model, series = load_forecaster(save_model(num_input_channels=2, cycle=5)), make_series()
    with torch.no_grad():
        model.cycle.values.normal_()
    found = run(model, [series], 20)[0]
    assert (found.values.shape, found.starts, found.quantiles) == ((20, 2), (0, 8, 16), None)
    longer = Series(np.concatenate((series.values, found.values[:8])), series.columns, None, None)
    scalers = [Scaler.fit(series.values)]
    later = forecast_series(model, [longer], scalers, 8, [longer.times_after(8)])[0]
    assert np.allclose(later.values, found.values[8:16], rtol=1e-5)


def test_a_memory_reads_the_windows_before_the_history(save_model):
    from titanslab.forecasting.history import open_source

    folder, series = save_model(memory_windows=1), make_series(60, 1)
    assert open_source(folder).history_length == 48
    found = run(load_forecaster(folder), [series], 8)[0]
    other = Series(np.concatenate((series.values[:20] + 5, series.values[20:])), ("a",), None, None)
    scalers = [Scaler.fit(series.values)]
    model = load_forecaster(folder)
    later = forecast_series(model, [other], scalers, 8, [other.times_after(8)])[0]
    earlier = forecast_series(model, [series], scalers, 8, [series.times_after(8)])[0]
    assert np.array_equal(found.values, earlier.values)
    assert not np.allclose(later.values, earlier.values, rtol=1e-7)  # rows 12 to 19 differ, which the memory reads


def test_a_short_series_begins_with_missing_values_and_its_neighbours_do_not_matter(save_model):
    model = load_forecaster(save_model())
    series = [make_series(rows, 1, name) for rows, name in ((12, "u"), (40, "v"))]
    found = run(model, series, 8)
    assert np.allclose(found[0].values, run(model, series[:1], 8)[0].values, rtol=1e-5)
    missing = np.concatenate((np.full((12, 1), np.nan), series[0].values))
    padded = Series(missing, ("a",), None, None, "u")
    assert np.allclose(found[0].values, run(model, [padded], 8)[0].values, rtol=1e-5)


def test_quantiles_of_a_mixture_hold_the_errors_of_both_forecasts():
    levels = [i / 20 for i in range(1, 20)]
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(levels))
    one = normal.view(1, 1, 1, 1, -1)
    assert torch.equal(mixture(one, levels), one[:, 0])
    walk = normal.view(1, -1, 1, 1, 1) + one  # after a step with the same spread
    found = mixture(walk, levels)[0, 0, 0]
    wider = found / normal  # sqrt(2) but for the tails, which the outermost levels cut off
    assert wider[:9].min() > 1.15
    assert wider[:9].max() < 1.5
    assert wider[0] == pytest.approx(2**0.5, rel=0.1)
    assert torch.allclose(mixture(one.expand(1, 19, 1, 1, 19), levels)[0, 0, 0], normal, atol=0.05)


def test_quantiles_of_unequal_levels_are_weighted_by_their_share():
    values = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 1, 3).expand(1, 3, 1, 1, 3)
    low, middle, high = mixture(values, [0.05, 0.5, 0.95])[0, 0, 0].tolist()
    assert middle == pytest.approx(1.0, abs=1e-6)
    assert low < 0.1
    assert high > 1.9


def test_the_table_continues_the_file_and_can_be_read_again(quantile_model, tmp_path):
    found = run(load_forecaster(quantile_model), [make_series()], 8)
    write_forecasts(found, tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    names = ["date", "a", "b", "a-q0.1", "a-q0.5", "a-q0.9", "b-q0.1", "b-q0.5", "b-q0.9"]
    assert list(table) == names
    assert table.date.iloc[0] == "2026-01-02 16:00:00"
    assert np.allclose(table["b-q0.9"], found[0].quantiles[:, 1, 2])
    again = read_series(tmp_path / "out.csv")[0]
    assert (again.step, again.rows) == ("h", 8)


def test_a_table_of_several_series_has_a_row_for_each_series_and_time(save_model):
    series = [make_series(40, 1, "u"), make_series(30, 1, "v")]
    table = forecast_table(run(load_forecaster(save_model()), series, 8))
    assert list(table) == ["unique_id", "ds", "a"]
    assert table.unique_id.tolist() == ["u"] * 8 + ["v"] * 8
    assert table.ds[8] == pd.Timestamp("2026-01-02 06:00")
    rows = [Series(one.values, one.columns, None, None, one.name) for one in series]
    counted = forecast_table(run(load_forecaster(save_model()), rows, 2), series_column="shop")
    assert counted[["shop", "row"]].values.tolist() == [["u", 40], ["u", 41], ["v", 30], ["v", 31]]


@pytest.mark.parametrize("count", [1, 5])
def test_the_picture_has_a_panel_for_each_column(quantile_model, tmp_path, count, monkeypatch):
    from matplotlib.figure import Figure

    from titanslab.forecasting import picture

    monkeypatch.setattr(picture, "MOST", 3)
    drawn = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), real(figure, *a, **k)))
    model = load_forecaster(quantile_model, num_input_channels=1)
    found = run(model, [make_series(40, 1, f"s{i}") for i in range(count)], 20)
    plot_forecasts(found, tmp_path / "out.png", "A title", 24)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert len(panels) == min(count, 3)
    history, ahead = panels[0].lines[:2]
    assert (len(history.get_xdata()), len(ahead.get_xdata())) == (24, 21)
    assert [axes.get_title() for axes in panels[:1]] == ["s0: a"]
    assert ("the first 3 of 5" in drawn[0].get_suptitle()) == (count > 3)


def test_bands_are_pairs_around_the_median():
    assert bands([0.1, 0.5, 0.9]) == [(0, 2)]
    assert bands([0.1, 0.2, 0.5]) == []
    assert len(bands([i / 20 for i in range(1, 20)])) == 4
