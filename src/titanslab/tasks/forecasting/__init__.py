"""Forecasting: named sets, splits by rows, and scores; no model."""

from titanslab.tasks.forecasting.scores import Scores
from titanslab.tasks.forecasting.splits import (
    NAMED,
    PARTS,
    constant_columns,
    fit_scalers,
    form_of,
    part_windows,
    split_name,
    split_rows,
)

__all__ = [
    "NAMED",
    "PARTS",
    "Scores",
    "constant_columns",
    "fit_scalers",
    "form_of",
    "part_windows",
    "split_name",
    "split_rows",
]
