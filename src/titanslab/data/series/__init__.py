"""Time series: from files of any common form to windows for a model's forward."""

from typing import TYPE_CHECKING, Any

from titanslab.data.series.facts import SeriesFacts
from titanslab.data.series.read import SeriesForm, read_series
from titanslab.data.series.scaler import Scaler
from titanslab.data.series.series import Series

if TYPE_CHECKING:
    from titanslab.data.series.windows import SeriesWindows

__all__ = ["Scaler", "Series", "SeriesFacts", "SeriesForm", "SeriesWindows", "read_series"]


def __getattr__(name: str) -> Any:
    """Import `SeriesWindows` at its first use: it needs torch, and reading a file does not."""
    if name == "SeriesWindows":
        from titanslab.data.series.windows import SeriesWindows

        return SeriesWindows
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
