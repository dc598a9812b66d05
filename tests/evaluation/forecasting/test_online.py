"""Learning on a stream: score first, then learn, and nothing is used before its time."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from titanslab.data.series import Series, SeriesWindows
from titanslab.evaluation.forecasting.online import Online, finished, score_refitted, score_stream
from titanslab.evaluation.forecasting.refit import LinearRegression, arrays
from titanslab.evaluation.forecasting.run import ForecastingRun, open_stage
from titanslab.evaluation.forecasting.run_online import run_online
from titanslab.models.forecaster import forecaster

from .conftest import SIZES, save

FORMS = [Online(), Online(carry=True), Online(weights="memory", rate=1e-2), Online(weights="all", rate=1e-2)]
FORMS += [Online(carry=True, weights="all", rate=1e-2), Online(weights="all", every=3, rate=1e-2)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return forecaster(None, SIZES | {"dropout": 0.0}).eval()


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(60, 2)).cumsum(0)


def stream_forecasts(score, values, monkeypatch):
    """The forecasts `[W, H, C]` of every window of a stream, in their order."""
    kept = []
    monkeypatch.setattr(
        "titanslab.evaluation.forecasting.online.Stream.add", lambda self, start, found: kept.append(found.point)
    )
    score(SeriesWindows([Series(values, ("a", "b"))], 12, 4))
    return np.concatenate(kept)


def refitted(windows):
    linear = LinearRegression(12, 4, ridge=1e-3)
    return score_refitted(windows, linear, 3, refit=True)


@pytest.mark.parametrize("online", [*FORMS, None], ids=str)
def test_no_forecast_uses_a_row_before_its_time(online, model, values, monkeypatch):
    score = refitted if online is None else lambda windows: score_stream(model, windows, online, "cpu")
    before = stream_forecasts(score, values, monkeypatch)
    for row in (20, 33, 47):
        changed = values.copy()
        changed[row:] += np.random.default_rng(row).normal(size=changed[row:].shape)
        after = stream_forecasts(score, changed, monkeypatch)
        known = row - 12 + 1  # windows whose history ends before the row
        np.testing.assert_array_equal(after[:known], before[:known])
        assert not np.allclose(after[known:], before[known:])


@pytest.mark.parametrize("online", FORMS[1:], ids=str)
def test_learning_changes_forecasts_and_not_the_model(online, model, values, monkeypatch):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = stream_forecasts(lambda w: score_stream(model, w, Online(), "cpu"), values, monkeypatch)
    learned = stream_forecasts(lambda w: score_stream(model, w, online, "cpu"), values, monkeypatch)
    assert np.allclose(learned[:3], frozen[:3])  # nothing is known at the start
    assert not np.allclose(learned[-1], frozen[-1])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_window_is_finished_when_its_last_target_is_in_the_history(values):
    windows = SeriesWindows([Series(values, ("a", "b"))], 12, 4)
    for start in range(0, 40, 7):
        count = finished(windows, start)
        history_end = start + 12  # the first row after the history
        assert all(windows.place(s)[1] + 4 <= history_end for s in range(count))
        assert windows.place(count)[1] + 4 > history_end


def test_every_finished_window_is_learned_from_once(model, values, monkeypatch):
    seen = []
    original = type(model).forward

    def forward(self, **batch):
        if "future_values" in batch:
            seen.extend(batch["past_time_index"].tolist())
        return original(self, **batch)

    monkeypatch.setattr(type(model), "forward", forward)
    windows = SeriesWindows([Series(values, ("a", "b"))], 12, 4)
    score_stream(model, windows, Online(weights="memory", every=5, batch_size=3), "cpu")
    last_block = (len(windows) - 1) // 5 * 5
    assert seen == list(range(finished(windows, last_block)))


def test_a_carried_memory_reads_every_row_once(model, values):
    windows = SeriesWindows([Series(values, ("a", "b"))], 12, 4)
    stream = score_stream(model, windows, Online(carry=True), "cpu")
    assert [start for start, _ in stream.blocks] == [0, 12, 24, 36]
    past = torch.tensor(values, dtype=torch.float32)
    state = None
    for i in range(3):
        state = model(past[None, 12 * i : 12 * (i + 1)], state=state, return_state=True).state
    expected = model(past[None, 40:52], state=state).prediction_outputs[0]
    error = (expected - past[52:56]).square().mean().item()
    only = SeriesWindows([Series(values[:56], ("a", "b"))], 12, 4)  # its last window is that one
    blocks = score_stream(model, only, Online(carry=True), "cpu").blocks
    rest = [
        (model(past[None, s : s + 12], state=state).prediction_outputs[0] - past[s + 12 : s + 16])
        .square()
        .mean()
        .item()
        for s in range(36, 40)
    ]
    assert blocks[-1][1] == pytest.approx(np.mean([*rest, error]), rel=1e-5)


def test_the_refitted_regression_is_the_one_on_all_finished_windows(values):
    windows = SeriesWindows([Series(values, ("a", "b"))], 12, 4)
    train = SeriesWindows([Series(values[:30], ("a", "b"))], 12, 4)
    linear = LinearRegression.fit(train, ridge=1e-3)
    x, y, _ = arrays(train, range(len(train)))
    mean = x.mean(1, keepdims=True)
    a, b = (np.moveaxis(part - mean, 2, 1).reshape(-1, part.shape[1]).astype(np.float64) for part in (x, y))
    gram = a.T @ a
    expected = np.linalg.solve(gram + 1e-3 * np.trace(gram) / 12 * np.eye(12), a.T @ b)
    np.testing.assert_allclose(linear.weight, expected, rtol=1e-6, atol=1e-8)
    frozen, refit = (score_refitted(windows, linear, None, again).scores for again in (False, True))
    assert refit.squared != frozen.squared


def test_a_stream_is_one_series(model, values):
    windows = SeriesWindows([Series(values, ("a", "b"))] * 2, 12, 4)
    with pytest.raises(ValueError, match="a stream needs one series with its columns, got 2 series"):
        score_stream(model, windows, Online(), "cpu")
    linear = SimpleNamespace(named_parameters=lambda: [], config=SimpleNamespace(history_length=12))
    windows = SeriesWindows([Series(values, ("a", "b"))], 12, 4)
    with pytest.raises(ValueError, match="the model has no memory that could be carried"):
        score_stream(linear, windows, Online(carry=True), "cpu")
    with pytest.raises(ValueError, match="every must be 12, the rows of a history"):
        score_stream(model, windows, Online(carry=True, every=5), "cpu")
    with pytest.raises(ValueError, match="weights must be one of none, memory, all"):
        Online(weights="some")


def test_all_forms_are_written(forecasting_model, series_file, tmp_path):
    run = ForecastingRun(str(forecasting_model), str(series_file), tmp_path)
    result = run_online(run, open_stage(run), rate=1e-3, every=None)
    assert list(result["forms"]) == [
        *("frozen", "memory carried", "M_0 learns", "all weights learn"),
        *("linear regression, frozen", "linear regression, refitted"),
    ]
    assert result == json.loads((tmp_path / "online.json").read_text())
    assert (tmp_path / "online.png").read_bytes().startswith(b"\x89PNG")
    assert {form["windows"] for form in result["forms"].values()} == {27}


def test_a_model_without_a_memory_has_fewer_forms(series_file, tmp_path):
    model = save(tmp_path / "run", series_file, "linear")
    run = ForecastingRun(str(model), str(series_file), tmp_path / "out")
    assert list(run_online(run, open_stage(run), rate=1e-3, every=2)["forms"])[:2] == ["frozen", "all weights learn"]
