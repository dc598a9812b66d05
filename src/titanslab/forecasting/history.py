"""The series of a file as a model's history, checked before torch or a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from titanslab.data.series.facts import FACTS, SeriesFacts
from titanslab.data.series.read import SeriesForm, read_series
from titanslab.data.series.scaler import Scaler
from titanslab.data.series.series import Series
from titanslab.data.series.times import counted
from titanslab.documents import read_json
from titanslab.runs.loading import find_model_folder

SHOWN = 8  # names of columns in a message


class ModelSizes(Struct):
    """The fields of a forecasting model's config that decide which history it takes."""

    context_length: Annotated[int, Meta(ge=1)] | None = None
    prediction_length: Annotated[int, Meta(ge=1)] | None = None
    memory_windows: Annotated[int, Meta(ge=0)] = 0
    num_input_channels: Annotated[int, Meta(ge=1)] | None = None
    quantiles: list[float] = []
    cycle: int = 0
    scaling_affine: bool = False
    channel_mixing: str = ""

    @property
    def of_columns(self) -> str:
        """The option that gives each column parameters of its own, so that their number is fixed; "" for none."""
        if self.cycle:
            return f"cycle={self.cycle}"
        if self.scaling_affine:
            return "scaling_affine"
        return "channel_mixing='variates'" if self.channel_mixing == "variates" else ""


@dataclass(frozen=True)
class Source:
    """A model's folder: the sizes in its config, and the facts about its training data where it has them.

    Args:
        history_length: rows that the model reads; the last `context_length` of them are forecast from.
        columns, of_columns: the number of columns, and the option that fixes it, "" for none.
    """

    folder: Path
    history_length: int
    context_length: int
    prediction_length: int
    columns: int
    of_columns: str
    cycle: int
    facts: SeriesFacts | None


@dataclass(frozen=True)
class History:
    """The series of a file with the scale on which a model reads each.

    Args:
        series: of the file, all with the same columns.
        scalers: one for each series.
        notes: facts that a user should know, a sentence each.
    """

    series: list[Series]
    scalers: list[Scaler]
    notes: list[str]


def open_source(model: str | Path) -> Source:
    """The sizes and facts of the forecasting model in a folder; no weights are read.

    Raises:
        FileNotFoundError, ValueError: the folder has no model, or another than a forecasting model.
    """
    folder = find_model_folder(model)
    sizes = read_json(folder / "config.json", ModelSizes, finite=False)
    if sizes.context_length is None or sizes.prediction_length is None or sizes.num_input_channels is None:
        raise ValueError(f"the model in {str(folder)!r} is not a forecasting model: its config has no context_length")
    place = next((place for place in (folder, Path(model)) if (place / FACTS).is_file()), None)
    return Source(
        folder,
        (1 + sizes.memory_windows) * sizes.context_length,
        sizes.context_length,
        sizes.prediction_length,
        sizes.num_input_channels,
        sizes.of_columns,
        sizes.cycle,
        None if place is None else SeriesFacts.read(place),
    )


def read_history(path: str | Path, source: Source, form: SeriesForm | None = None) -> History:
    """The series of a file, with the columns and the scale that a model was trained on where the file has them.

    Args:
        path: a file that `read_series` takes.
        source: of the model.
        form: as for `read_series`. Columns that it does not name are those of the training where the file has all of
            them, and else all of the file; other fields with their default are as in the training where the file is
            like it.

    Raises:
        FileNotFoundError, ValueError: of `read_series`; or the file has too few rows or another number of columns, or
            a column has no value in the rows that the model reads.
    """
    form = form or SeriesForm()
    series = _read(path, source.facts, form)
    scalers, own = _scalers(series, source)
    notes = _check_columns(str(path), series, source)
    if own and not notes:
        names = "every series" if several(series) else f"columns {_names(own)}"
        notes.append(f"{names}: the model has no scale of the training for them, and the file's own rows give it")
    notes += _check_rows(str(path), series, source)
    facts, step = source.facts, series[0].step
    if facts is not None and None not in (facts.step, step) and facts.step != step:
        notes.append(f"the model was trained on rows at steps of {facts.step}, and {path} has steps of {step}")
    if source.cycle:
        notes.append(
            f"the model has a learned cycle of {source.cycle} rows: the first row of {path} must be at the same place "
            "of the cycle as the first row of its training file"
        )
    return History(series, scalers, notes)


def times_after(history: History, horizon: int, path: str | Path) -> list[np.ndarray]:
    """The times of the `horizon` rows after the end of each series; ValueError where they are beyond all dates."""
    try:
        return [one.times_after(horizon) for one in history.series]
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"--horizon {horizon:,} ends beyond the last date that can be written, after {path}: "
            f"{' '.join(str(error).split())[:120]}; lower it"
        ) from error


def several(series: list[Series]) -> bool:
    """Whether series come from a file in which each has a name."""
    return len(series) > 1 or bool(series[0].name)


def _read(path: str | Path, facts: SeriesFacts | None, form: SeriesForm) -> list[Series]:
    """The series of a file, read as the training file was where that is possible."""
    if facts is None:
        return read_series(path, form)
    default, changes = SeriesForm(), {}
    for name in ("time_column", "series_column", "steps", "decimal"):
        if getattr(form, name) == getattr(default, name):
            changes[name] = getattr(facts, name)
    wide = facts.form == "wide" and form.series_column is None
    columns = form.columns or (facts.columns if wide else None)
    try:
        return read_series(path, replace(form, columns=columns, form=facts.form if wide else "auto", **changes))
    except ValueError:
        found = read_series(path, form)  # raises the same error where the file itself is at fault
        if set(facts.columns) <= set(found[0].columns):
            raise
        return found


def _check_columns(path: str, series: list[Series], source: Source) -> list[str]:
    """Notes about the columns; ValueError where the model cannot take their number."""
    names, facts = series[0].columns, source.facts
    trained = [] if facts is None else facts.columns
    if source.of_columns and len(names) != source.columns:
        raise ValueError(
            f"{path} has {len(names)} columns ({_names(names)}), and the model was trained on {source.columns}"
            f"{f' ({_names(trained)})' if trained else ''} and has parameters for each of them ({source.of_columns}); "
            f"give a file with {source.columns} columns, or name that many with --column"
        )
    if not trained or set(names) <= set(trained):
        return []
    if source.of_columns:
        return [f"columns {_names(names)} stand for {_names(trained)} of the training, in this order"]
    new = [name for name in names if name not in trained]
    return [
        f"the model was trained on {_names(trained)}, and not on {_names(new)}: new columns are forecast one by one, "
        "on the scale of their own rows"
    ]


def _check_rows(path: str, series: list[Series], source: Source) -> list[str]:
    """Notes about short series and missing values; ValueError for a history that holds too little."""
    length = source.history_length
    short = [one for one in series if one.rows < length]
    if short and not several(series):
        raise ValueError(
            f"{path} has {counted(short[0].rows, 'row')}, and the model reads {length:,}; give more rows, or a model "
            "with a shorter context_length"
        )
    missing = 0
    for one in series:
        last = one.cut(max(0, one.rows - source.context_length), one.rows)
        empty = np.flatnonzero(np.isnan(last.values).all(0))
        if len(empty):
            where = f"{path}, series {one.name!r}" if several(series) else path
            raise ValueError(
                f"{where}: column {one.columns[empty[0]]!r} has no value in its last {last.rows:,} rows, which the "
                "model reads; choose other columns"
            )
        missing += one.cut(max(0, one.rows - length), one.rows).missing
    notes = []
    if short:
        first, more = short[0], f" and {len(short) - 1:,} more" if len(short) > 1 else ""
        notes.append(
            f"series {first.name!r} ({counted(first.rows, 'row')}){more} {'are' if more else 'is'} shorter than the "
            f"{length:,} rows that the model reads; rows before the first count as missing"
        )
    if missing:
        notes.append(f"missing in the rows that the model reads: {counted(missing, 'value')}; it reads the others")
    return notes


def _scalers(series: list[Series], source: Source) -> tuple[list[Scaler], list[str]]:
    """A scaler for each series, and the names of columns whose scale is of the file's own rows."""
    trained = None if source.facts is None else source.facts.scaler
    names = series[0].columns
    fitted = [Scaler.fit(one.values) for one in series]
    if trained is None or source.facts is None or len(series) > 1:
        return fitted, [] if source.facts is not None and source.facts.form == "long" else list(names)
    place = {name: i for i, name in enumerate(source.facts.columns)}
    if source.of_columns and not set(names) <= set(place):  # in the order of the training
        return [trained], []
    mean, std = fitted[0].mean.copy(), fitted[0].std.copy()
    for i, name in enumerate(names):
        if name in place:
            mean[i], std[i] = trained.mean[place[name]], trained.std[place[name]]
    return [Scaler(mean, std)], [name for name in names if name not in place]


def _names(names: Any) -> str:
    return ", ".join(list(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
