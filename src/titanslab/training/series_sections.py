"""[model] and [series] of a recipe that trains a forecasting model."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from titanslab.training.settings import Count, one_of

if TYPE_CHECKING:
    from titanslab.training.recipe import TrainingRecipe

SERIES = "series"  # the name of the section with the data
FILLED = "num_input_channels"  # the key of [model] that follows from the file


@dataclass
class ForecasterRecipe:
    """[model] beside [series]: a Titans model for forecasting, a baseline by name, or a saved model to start from.

    Args:
        architecture: the name of a baseline, see `titanslab.models.forecaster`; None = a Titans model.
        pretrained: the folder of a run or a saved model to start from.
        options: every other key of the section, a field of `TitansForecastingConfig` or of the baseline's config.
    """

    architecture: str | None = None
    pretrained: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        from titanslab.models.forecaster import ARCHITECTURES

        if self.architecture is not None:
            one_of("model.architecture", self.architecture, tuple(ARCHITECTURES))
        if self.pretrained is not None and self.architecture is not None:
            raise ValueError(
                f"model.architecture = {self.architecture!r} cannot take effect together with model.pretrained = "
                f"{self.pretrained!r}; remove one of the two"
            )
        if FILLED in self.options:
            raise ValueError(f"model.{FILLED} follows from the columns of series.file; leave it out")

    def option_names(self) -> list[str]:
        """The keys that `options` may hold: the fields of the model's config."""
        from titanslab.models.forecaster import ARCHITECTURES, option_names

        names = (self.architecture,) if self.architecture else ARCHITECTURES if self.pretrained else ("titans",)
        return sorted({option for name in names for option in option_names(name)} - {FILLED})


@dataclass
class SeriesRecipe:
    """[series]: the file of the series, its columns, and its split into training, validation and test rows.

    Args:
        file: CSV, TSV or parquet, plain or compressed: a column for each variable, or long (`unique_id, ds, y`).
        split: the name of a set of the field, such as "ETTh1"; shares such as "7:1:2"; or rows such as
            "8640/2880/2880". None = by the file's name, else "7:1:2".
        form, time_column, series_column, columns, steps, decimal: see `titanslab.data.series.SeriesForm`.
        stride: rows from one training window to the next; validation and test have every window.
    """

    file: str = ""
    split: str | None = None
    form: str = "auto"
    time_column: str | None = None
    series_column: str | None = None
    columns: list[str] | None = None
    steps: str = "check"
    decimal: str | None = None
    stride: Count = 1

    @property
    def validates(self) -> bool:
        """True: every split holds rows out to validate with."""
        return True

    def check(self) -> None:
        if not self.file:
            raise ValueError("series.file is missing: give a CSV or parquet file")

    def check_with(self, model: ForecasterRecipe, training: "TrainingRecipe") -> None:
        """Raise ValueError for values that cannot work together with the other sections."""
