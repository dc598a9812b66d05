"""A saved forecasting model with its facts, and its series."""

import numpy as np
import pandas as pd
import pytest
import torch

from titanslab.data.series import SeriesFacts, read_series
from titanslab.models.forecaster import forecaster
from titanslab.tasks.forecasting import fit_scalers

SIZES = {
    "context_length": 12,
    "prediction_length": 4,
    "patch_length": 6,
    "patch_stride": 3,
    "num_input_channels": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
}


def save(folder, file, architecture=None, **options):
    torch.manual_seed(0)
    sizes = SIZES if architecture is None else {n: v for n, v in SIZES.items() if n.endswith(("_length", "channels"))}
    sizes = sizes if architecture is None else {n: v for n, v in sizes.items() if n != "patch_length"}
    forecaster(architecture, sizes | options).save_pretrained(folder)
    series = read_series(file)
    scaler = fit_scalers(series, "6:2:2", "x")[0]
    SeriesFacts(list(series[0].columns), scaler.mean.tolist(), scaler.std.tolist(), "h", "6:2:2").write(folder)
    return folder


@pytest.fixture(scope="session")
def series_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = np.arange(150)
    values = np.stack((np.sin(rows / 3), 5 + 2 * np.cos(rows / 5)), 1) + 0.1 * rng.normal(size=(150, 2))
    table = pd.DataFrame(
        values, columns=["a", "b"], index=pd.date_range("2026-01-01", periods=150, freq="h", name="date")
    )
    table.iloc[130, 0] = np.nan
    path = tmp_path_factory.mktemp("series") / "mine.csv"
    table.to_csv(path)
    return path


@pytest.fixture(scope="session")
def forecasting_model(tmp_path_factory, series_file):
    return save(tmp_path_factory.mktemp("forecasting") / "run", series_file)
