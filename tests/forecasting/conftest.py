"""Small untrained forecasting models in folders, and files of series."""

import numpy as np
import pandas as pd
import pytest
import torch

from titanslab import TitansForecastingConfig, TitansForForecasting
from titanslab.data.series import SeriesFacts

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "context_length": 24}


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """Save a model for forecasts of 8 rows from 24, with facts about its training if any; returns its folder."""

    def save(facts=None, **options):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("models") / "model"
        config = TitansForecastingConfig(**(SIZES | {"prediction_length": 8, "patch_length": 8} | options))
        TitansForForecasting(config).eval().save_pretrained(folder)
        if facts is not None:
            SeriesFacts(**facts).write(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def quantile_model(save_model):
    """A model with quantiles, trained on columns a and b at steps of an hour."""
    facts = {"columns": ["a", "b"], "mean": [10.0, -5.0], "std": [2.0, 3.0], "step": "h"}
    return save_model(facts, num_input_channels=2, loss="quantile", quantiles=[0.1, 0.5, 0.9])


@pytest.fixture
def write_csv(tmp_path):
    """Write a file of columns with hourly dates from 2026; returns its path."""

    def write(name="my.csv", rows=40, step="h", date="date", **columns):
        t = np.arange(rows)
        values = columns or {"a": 10 + np.sin(t / 3), "b": -5 + np.cos(t / 4)}
        frame = pd.DataFrame({date: pd.date_range("2026-01-01", periods=rows, freq=step)} | values)
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write
