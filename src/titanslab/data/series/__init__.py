"""Time series: from files of any common form to windows for a model's forward."""

from titanslab.data.series.facts import SeriesFacts
from titanslab.data.series.read import SeriesForm, read_series
from titanslab.data.series.scaler import Scaler
from titanslab.data.series.series import Series
from titanslab.data.series.windows import SeriesWindows

__all__ = ["Scaler", "Series", "SeriesFacts", "SeriesForm", "SeriesWindows", "read_series"]
