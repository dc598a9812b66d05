"""`read_series`: time series from CSV or parquet, wide with a date column or none, or long."""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from titanslab.data.series.series import Series
from titanslab.data.series.times import (
    STEPS,
    counted,
    find_step,
    in_order,
    line,
    looks_like_times,
    parse_times,
    unequal,
)
from titanslab.data.text import file_bytes, local_path

FORMS = ("auto", "wide", "long")
LONG = ("unique_id", "ds", "y")  # the column names of the Nixtla libraries
TIME_NAMES = ("date", "ds", "time", "timestamp", "datetime", "date_time")
SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class SeriesForm:
    """How a file holds its series; by default all of it is found from the file's first lines.

    Args:
        form: "wide" has a column for each variable; "long" has a row for each series and time; "auto" takes a file with
            columns unique_id, ds and y, or with `series_column` given, for long.
        time_column: name of the column of dates or whole numbers; None = found; "" = the file has none.
        series_column: long files: name of the column with the series' ids.
        columns: names of the columns of values; None = all others (wide), or y (long).
        steps: where times are not equally far apart: "check" raises, "fill" adds the missing rows as missing values,
            "rows" takes the rows as they are, in the file's order, and times that occur twice too.
        decimal: "." or ","; None = found: "," in a file with semicolons whose numbers have commas and no points.
    """

    form: str = "auto"
    time_column: str | None = None
    series_column: str | None = None
    columns: Sequence[str] | None = None
    steps: str = "check"
    decimal: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("form", FORMS), ("steps", STEPS), ("decimal", (".", ","))):
            if getattr(self, name) not in (*allowed, None if name == "decimal" else allowed[0]):
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


def read_series(path: str | os.PathLike[str], form: SeriesForm | None = None) -> list[Series]:
    """The series of a file: one for a wide file, one for each id of a long file.

    Args:
        path: .csv, .tsv or .txt, plain or compressed (.gz, .xz, .bz2, .zst), or .parquet. The separator is found, and
            text that is not UTF-8 is read as Latin-1.
        form: how the file holds its series.

    Returns:
        Series with rows in the order of their times. Missing values are NaN; a column may be constant.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is empty, cut off or damaged, a column of values
            holds text, times occur twice or are at unequal steps. The message is one line with the column and the line.
    """
    form = form or SeriesForm()
    file = local_path(str(path))
    if not file.exists():
        raise FileNotFoundError(f"series {str(path)!r} does not exist (looked for {file.absolute()})")
    if file.is_dir():
        raise ValueError(f"series {str(path)!r} is a folder; name a file of CSV or parquet")
    where = str(path)
    table = _table(file, where, form)
    if not len(table):
        raise ValueError(f"{where} has {'a line of names and no rows' if len(table.columns) else 'no rows'}")
    if form.form == "long" or (form.form == "auto" and (form.series_column or set(LONG) <= set(table.columns))):
        return _long(table, where, form)
    return [_wide(table, where, form)]


def _table(file: Path, where: str, form: SeriesForm) -> Any:
    """All columns of a file."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if file.stat().st_size == 0:
        raise ValueError(f"{where} is empty")
    if suffixes and suffixes[-1] in (".parquet", ".pq"):
        table = _parquet(file, where)
    else:
        table = _csv(file_bytes(file, where, "CSV"), where, form.decimal)
    table.columns = [str(name).strip() for name in table.columns]
    return _joined(table)


def _joined(table: Any) -> Any:
    """The table, in which a column "date" and a column "time" of text have become one."""
    names = {str(name).lower(): name for name in table.columns}
    parts = [names[part] for part in ("date", "time") if part in names]
    if len(parts) == 2 and not any(pd.api.types.is_numeric_dtype(table[part]) for part in parts):
        date, time = parts
        table[date] = table[date].str.cat(table[time], sep=" ")
        table = table.drop(columns=time)
    return table


def _parquet(file: Path, where: str) -> Any:
    try:
        table = pd.read_parquet(file)
    except Exception as error:  # pyarrow has errors of its own
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{where} cannot be read as parquet: {reason}; is it whole?") from error
    if table.index.name is not None or isinstance(table.index, pd.DatetimeIndex):
        table = table.rename_axis(table.index.name or "date").reset_index()
    return table


def _csv(content: bytes, where: str, decimal: str | None) -> Any:
    """The columns of a CSV text; the separator is the one of `SEPARATORS` that most lines share."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if not text.strip():
        raise ValueError(f"{where} is empty")
    head = text[: 1 << 16].splitlines()[:20]
    try:
        separator = csv.Sniffer().sniff("\n".join(head), SEPARATORS).delimiter
    except csv.Error:
        separator = max(SEPARATORS, key=head[0].count)
    if head[0].count(separator) == 0:  # a single column, in which the sniffer may find anything
        separator = max(SEPARATORS, key=head[0].count)
    if decimal is None:
        commas, points = (any(re.search(rf"(?:^|;)-?\d+[{sign}]\d+(?=;|$)", row) for row in head) for sign in ",.")
        decimal = "," if separator == ";" and commas and not points else "."
    names = next(csv.reader([head[0]], delimiter=separator))
    options: dict[str, Any] = {"sep": separator, "decimal": decimal, "low_memory": False, "skip_blank_lines": True}
    if all(_is_number(name, decimal) for name in names):  # no line of names
        options |= {"header": None, "names": [str(i + 1) for i in range(len(names))]}
    try:
        table = pd.read_csv(io.StringIO(text), **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise ValueError(f"{where} cannot be read as CSV: {' '.join(str(error).split())[:200]}") from error
    # a separator at the end of every line makes a column without a name and without values
    return table.drop(columns=[n for n in table.columns if n.startswith("Unnamed: ") and table[n].isna().all()])


def _is_number(text: str, decimal: str) -> bool:
    try:
        float(text.replace(decimal, "."))
    except ValueError:
        return False
    return True


def _time_column(table: Any, where: str, form: SeriesForm) -> str | None:
    """The name of the time column, or None."""
    if form.time_column is not None:
        return _known(form.time_column, table, where, "time_column") if form.time_column else None
    for name in table.columns:
        if name.lower() in TIME_NAMES and name not in (form.columns or ()):
            return name
        if name.lower() == "year" and pd.api.types.is_integer_dtype(table[name]) and table[name].is_unique:
            return name
    for name in table.columns:
        if pd.api.types.is_datetime64_any_dtype(table[name]):
            return name
    text = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    return next((n for n in text if n not in (form.columns or ()) and looks_like_times(table[n])), None)


def _known(name: str, table: Any, where: str, option: str) -> str:
    if name not in table.columns:
        columns = ", ".join(map(repr, table.columns[:12])) + (", ..." if len(table.columns) > 12 else "")
        raise ValueError(f"{where} has no column {name!r}, which {option} names; its columns: {columns}")
    return name


def _wide(table: Any, where: str, form: SeriesForm) -> Series:
    time = _time_column(table, where, form)
    if form.columns is not None:
        names = [_known(name, table, where, "columns") for name in form.columns]
    else:
        names = [name for name in table.columns if name != time and not _is_index(name, table)]
    if not names:
        raise ValueError(f"{where} has no column of values beside {time!r}")
    rows = np.arange(len(table))
    return _series(_values(table, names, where), tuple(names), _times(table, time, where), rows, where, form.steps)


def _long(table: Any, where: str, form: SeriesForm) -> list[Series]:
    key = _known(form.series_column or LONG[0], table, where, "series_column")
    time = LONG[1] if form.time_column is None and LONG[1] in table.columns else _time_column(table, where, form)
    names = [_known(name, table, where, "columns") for name in form.columns or (LONG[2],)]
    if bool(table[key].isna().any()):
        raise ValueError(f"{where}: column {key!r} is empty in {line(int(np.flatnonzero(table[key].isna())[0]))}")
    values, times = _values(table, names, where), _times(table, time, where)
    found = []
    for name, rows in table.groupby(key, sort=True).indices.items():
        one = _series(values, tuple(names), times, rows, f"{where}, series {name!r}", form.steps)
        found.append(replace(one, name=str(name)))
    return found


def _values(table: Any, names: Sequence[str], where: str) -> np.ndarray:
    """Columns as float64 `[T, C]`."""
    return np.stack([_numbers(table[name], name, where) for name in names], axis=1)


def _times(table: Any, name: str | None, where: str) -> np.ndarray | None:
    """A column of times, or None."""
    return None if name is None else parse_times(table[name], f"{where}: column {name!r}")


def _is_index(name: str, table: Any) -> bool:
    """Whether a column is the row numbers that pandas writes under no name."""
    if name not in ("", "Unnamed: 0") or not pd.api.types.is_integer_dtype(table[name]):
        return False
    return bool((np.diff(table[name].to_numpy()) == 1).all())


def _numbers(column: Any, name: str, where: str) -> np.ndarray:
    """A column as float64; ValueError with its name and line for text or an infinite number."""
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"{where} has {column.shape[1]} columns named {name!r}; rename all but one")
    try:
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    except OverflowError:  # a whole number of hundreds of digits
        numbers = np.array([_number(value) for value in column])
    wrong = np.flatnonzero(np.isnan(numbers) & ~column.isna().to_numpy())
    if len(wrong):
        text, row = str(column.iloc[wrong[0]]), int(wrong[0])
        more = f" and in {counted(len(wrong) - 1, 'more line')}" if len(wrong) > 1 else ""
        comma = (
            "; its decimal sign may be a comma: decimal=','" if text.replace(",", "", 1).strip("-").isdigit() else ""
        )
        raise ValueError(
            f"{where}: column {name!r} holds text in {line(row)} ({text[:40]!r}){more}{comma}; correct it, empty the "
            "field for a missing value, or choose other columns"
        )
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise ValueError(f"{where}: column {name!r} is infinite in {line(int(infinite[0]))}; empty the field")
    return numbers


def _number(value: Any) -> float:
    """A field as a float: infinite beyond its range, NaN for text."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")
    except (TypeError, ValueError):
        return float("nan")


def _series(
    values: np.ndarray, names: tuple[str, ...], times: np.ndarray | None, rows: np.ndarray, where: str, steps: str
) -> Series:
    """The series in the rows `rows` of a file, in the order of their times, or of the file where it has none."""
    if times is None:
        return Series(values[rows], names)
    if steps == "rows":
        return Series(values[rows], names, times[rows], _step_of_rows(times[rows]))
    rows = in_order(times, rows, where)
    values, times = values[rows], times[rows]
    step, grid = find_step(times)
    if len(grid) == len(times):
        return Series(values, names, times, step)
    if steps == "check" or not len(grid):
        raise unequal(times, where, bool(len(grid)))
    filled = np.full((len(grid), values.shape[1]), np.nan)
    filled[np.searchsorted(grid, times)] = values
    return Series(filled, names, grid, step)


def _step_of_rows(times: np.ndarray) -> str | int | None:
    """The step of times that are a whole grid; None for others, whose rows alone are counted."""
    if not (np.diff(times) > np.zeros((), np.diff(times).dtype)).all():
        return None
    step, grid = find_step(times)
    return step if len(grid) == len(times) else None
