"""The class for neuralforecast, against the real library, where the extra `forecast` is installed."""

import builtins
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pages import blocks

PAGE = Path(__file__).parents[2] / "docs" / "forecasting_libraries.md"
FILE = "titanslab.integrations.neuralforecast"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.0}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
FIT = {"learning_rate": 1e-2, "windows_batch_size": 16, "max_steps": 40}


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def imported(name, *arguments, **options):
        if name.partition(".")[0] in ("neuralforecast", "pytorch_lightning"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, FILE, raising=False)
    monkeypatch.setattr(builtins, "__import__", imported)
    with pytest.raises(ImportError, match=r"pip install 'titans-lab\[forecast\]'"):
        real(FILE, fromlist=["Titans"])


@pytest.fixture(scope="module")
def library():
    """neuralforecast; the tests below are left out where it is not installed, as in the extra `test`: it brings ray."""
    return pytest.importorskip("neuralforecast", reason="pip install 'titans-lab[forecast]'", exc_type=ImportError)


@pytest.fixture
def titans(library):
    """Makes a small `Titans` for 6 steps from 24."""
    from titanslab.integrations.neuralforecast import Titans

    def make(**options):
        return Titans(**({"h": 6, "input_size": 24} | SIZES | FIT | QUIET | options))

    return make


@pytest.fixture(scope="module")
def frame():
    """Three series of unequal length and scale with a period of 12."""
    parts = []
    for i, rows in enumerate((60, 100, 80)):
        t = np.arange(rows)
        parts.append(
            pd.DataFrame(
                {
                    "unique_id": f"series {i}",
                    "ds": pd.date_range("2026-01-01", periods=rows, freq="h"),
                    "y": 10.0**i * (2 + np.sin(2 * np.pi * t / 12)),
                }
            )
        )
    return pd.concat(parts)


@pytest.mark.filterwarnings("ignore")
def test_fit_predict_save_and_load(library, titans, frame, tmp_path):
    options = {"channel_mixing": "fft", "memory": {"chunk_size": 2}}
    models = [titans(alias="point"), titans(alias="mac", sequence_module="mac", model_options=options, max_steps=2)]
    forecast = library.NeuralForecast(models=models, freq="h")
    forecast.fit(frame)
    predicted = forecast.predict()
    assert predicted.groupby("unique_id").size().tolist() == [6, 6, 6]
    first = predicted[predicted.unique_id == "series 0"]
    assert first.ds.tolist() == pd.date_range("2026-01-03 12:00", periods=6, freq="h").tolist()
    for i, rows in enumerate((60, 100, 80)):
        true = 10.0**i * (2 + np.sin(2 * np.pi * np.arange(rows, rows + 6) / 12))
        found = predicted[predicted.unique_id == f"series {i}"].point.to_numpy()
        assert np.abs(found - true).mean() < 0.2 * 10.0**i
    forecast.save(str(tmp_path / "saved"), overwrite=True)
    again = library.NeuralForecast.load(str(tmp_path / "saved"))
    mac = {model.alias: model.model.config for model in again.models}["mac"]  # in the order of the folder
    assert mac.to_dict() == forecast.models[1].model.config.to_dict()
    assert (mac.sequence_module, mac.channel_mixing, mac.memory.chunk_size) == ("mac", "fft", 2)
    pd.testing.assert_frame_equal(again.predict(frame)[predicted.columns], predicted)


@pytest.mark.filterwarnings("ignore")
def test_cross_validation_with_quantiles_and_early_stopping(library, titans, frame):
    from neuralforecast.losses.pytorch import MQLoss

    model = titans(loss=MQLoss(level=[80]), val_check_steps=10, early_stop_patience_steps=3)
    found = library.NeuralForecast(models=[model], freq="h").cross_validation(
        frame, n_windows=2, step_size=6, val_size=12
    )
    assert len(found) == 3 * 2 * 6
    assert {"Titans-median", "Titans-lo-80", "Titans-hi-80"} <= set(found)
    error = (found["Titans-median"] - found.y).abs() / found.y.abs()
    assert error.mean() < 0.2


@pytest.mark.filterwarnings("ignore")
def test_a_distribution_is_drawn_on_the_scale_of_each_series(library, titans, frame):
    from neuralforecast.losses.pytorch import DistributionLoss

    model = titans(loss=DistributionLoss("StudentT", level=[80]))
    assert (model.model.config.scaling, model.hparams.scaler_type) == ("none", "standard")
    forecast = library.NeuralForecast(models=[model], freq="h")
    forecast.fit(frame)
    means = forecast.predict().groupby("unique_id")["Titans-median"].mean()
    assert np.allclose(means / [1, 10, 100], 2, atol=0.8)


@pytest.mark.filterwarnings("ignore")
def test_outputs_are_those_of_the_hugging_face_model(titans):
    from neuralforecast.losses.pytorch import MQLoss

    torch.manual_seed(0)
    model = titans(loss=MQLoss(quantiles=[0.1, 0.5])).eval()
    history, mask = torch.randn(3, 24, 1), torch.ones(3, 24, 1)
    mask[:, :7] = 0
    batch = {"insample_y": history, "insample_mask": mask, "hist_exog": None, "futr_exog": None, "stat_exog": None}
    found = model(batch)
    assert found.shape == (3, 6, 2)
    assert torch.equal(found.flatten(1), model.model(history, mask).prediction_outputs.flatten(1))
    other = torch.where(mask.bool(), history, 5.0)
    assert torch.equal(model(batch | {"insample_y": other}), found)  # padding does not count


@pytest.mark.filterwarnings("ignore")
def test_the_program_of_the_page_runs(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (program,) = (block.code for block in blocks(PAGE) if block.language == "py")
    assert "max_steps=300" in program
    scope = {}
    exec(compile(program.replace("max_steps=300", "max_steps=2"), PAGE.name, "exec"), scope)
    assert {"Titans-lo-80", "NHITS-hi-80"} <= set(scope["scores"])
    assert {type(model).__name__ for model in scope["again"].models} == {"NHITS", "Titans"}


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"hist_exog_list": ["price"]}, Exception, "does not support historical exogenous"),
        ({"futr_exog_list": ["price"]}, Exception, "does not support future exogenous"),
        ({"stat_exog_list": ["place"]}, Exception, "does not support static exogenous"),
        ({"hiden_size": 8}, TypeError, "no argument 'hiden_size'; did you mean 'hidden_size'"),
        ({"scaling": "none"}, TypeError, "as an entry of model_options"),
        ({"model_options": {"scalng": "none"}}, TypeError, "did you mean 'scaling'"),
        ({"model_options": {"dropout": 0.2}}, TypeError, "an argument of its own"),
        ({"dropout": 2.0}, ValueError, "dropout must be a number of at least 0 and below 1"),
    ],
)
def test_what_cannot_be_used_is_named(titans, options, kind, words):
    with pytest.raises(kind, match=words):
        titans(**options)
