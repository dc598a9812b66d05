"""`series.json` in a model's folder: the facts about its training data that a forecast or a score needs."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct, structs

from titanslab.data.series.scaler import Scaler
from titanslab.documents import read_json
from titanslab.files import write_whole

FACTS = "series.json"


class SeriesFacts(Struct, frozen=True):
    """Facts of the series that a model was trained on.

    Args:
        columns: names of the columns, in the model's order; one for a long file.
        mean, std: of each column over the training rows, the scale of the model's inputs and outputs; empty for a
            long file, where every series has its own, from its own rows.
        step: as in `Series`; None where rows alone were counted.
        split: the name of a split in `titanslab.tasks.forecasting`, such as "ETTh1", or shares such as "7:1:2".
        form: "wide" or "long".
        time_column, series_column, steps, decimal: as in `SeriesForm`.
        file: the name of the training file.
    """

    columns: list[str]
    mean: list[float] = []
    std: list[Annotated[float, Meta(gt=0)]] = []
    step: str | int | None = None
    split: str = "7:1:2"
    form: str = "wide"
    time_column: str | None = None
    series_column: str | None = None
    steps: str = "check"
    decimal: str | None = None
    file: str = ""

    def write(self, folder: Path) -> None:
        """Write series.json into a model's folder."""
        write_whole(folder / FACTS, json.dumps(structs.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "SeriesFacts":
        """The facts in a model's folder.

        Raises:
            FileNotFoundError: the folder has no series.json. ValueError: it has other contents.
        """
        path = folder / FACTS
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} has no {FACTS}, which titans train writes for a series; is it a run of forecasting?"
            )
        facts = read_json(path, cls, fix="copy it again from the run")
        if len(facts.mean) != len(facts.std) or len(facts.mean) not in (0, len(facts.columns)):
            raise ValueError(f"{path}: mean, std and columns must be equally long; copy it again from the run")
        return facts

    @property
    def scaler(self) -> Scaler | None:
        """The scaler of the columns; None for a long file."""
        return Scaler(np.array(self.mean), np.array(self.std)) if self.mean else None
