"""The time column of a series: dates or whole numbers, their order and their step."""

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd

STEPS = ("check", "fill", "rows")
# Steps by the calendar, which have no fixed length; tried after the commonest difference of the dates.
CALENDAR = ("B", "MS", "ME", "BMS", "BME", "QS", "QE", "YS", "YE")
_AMBIGUOUS = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")
MOST_FILLED = 20  # times the rows: a grid that is longer than this is no series with gaps


def parse_times(column: Any, where: str) -> np.ndarray:
    """A column of dates as datetime64 `[T]`, in UTC where it names a zone, or of whole numbers as int64 `[T]`.

    Raises:
        ValueError: `where` and the first row that is empty or no date.
    """
    if bool(column.isna().any()):
        raise ValueError(f"{where} is empty in {line(int(np.flatnonzero(column.isna())[0]))}; give every row its time")
    if pd.api.types.is_numeric_dtype(column):
        if not bool((column % 1 == 0).all()):
            raise ValueError(f"{where} holds numbers that are not whole; give time_column='' to count rows instead")
        return column.to_numpy(np.int64)
    if not pd.api.types.is_datetime64_any_dtype(column):
        column = _dates(column)
        if bool(column.isna().any()):
            bad = int(np.flatnonzero(column.isna())[0])
            raise ValueError(f"{where} holds no date in {line(bad)}; write dates as 2026-01-31 or 2026-01-31 12:00:00")
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return column.to_numpy("datetime64[ns]")


def looks_like_times(column: Any) -> bool:
    """Whether the first values of a column of text are dates."""
    head = column.dropna().head(5)
    return len(head) > 0 and not bool(_dates(head).isna().any())


def _dates(column: Any) -> Any:
    """A column of text as dates; NaT where a value is none.

    Dates such as 01/02/2026 and 01.02.2026 are read with the month first and with the day first. Where both are dates,
    those at equal steps are taken; where both or none of them are, the day is first with points, else the month.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a format that pandas guesses per value
        text = column.astype(str).str.strip()
        zone = True if bool(text.str.contains(r":\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)$").any()) else None
        head = text.iloc[0]
        orders = [{"dayfirst": False}, {"dayfirst": True}] if _AMBIGUOUS.match(head) else [{}]
        orders = orders[::-1] if "." in head[:3] else orders
        found = [dates for dates in (_parsed(text, zone, **order) for order in orders) if dates is not None]
        if len(found) > 1:
            found.sort(key=lambda dates: not _equal_steps(dates))
        if found:
            return found[0]
        mixed = _parsed(text, zone, format="mixed")
        return pd.to_datetime(text, errors="coerce", utc=True).dt.tz_localize(None) if mixed is None else mixed


def _parsed(text: Any, zone: bool | None, **options: Any) -> Any:
    """A column of text as dates; None where a value is none."""
    try:
        return pd.to_datetime(text, utc=zone, **options)
    except (ValueError, TypeError):
        return None


def _equal_steps(dates: Any) -> bool:
    times = np.unique(dates.to_numpy("datetime64[ns]"))
    return len(find_step(times)[1]) == len(times)


def line(row: int) -> str:
    """The place of row `row` (from 0) in a file whose first line holds the names."""
    return f"line {row + 2}"


def in_order(times: np.ndarray, rows: np.ndarray, where: str) -> np.ndarray:
    """The rows of a file, in which `times [T]` stand, in the order of their times; ValueError for a time twice."""
    rows = np.sort(rows)
    rows = rows[np.argsort(times[rows], kind="stable")]
    same = np.flatnonzero(times[rows][1:] == times[rows][:-1])
    if len(same):
        first, second = (int(row) for row in rows[same[0] : same[0] + 2])
        count = f", as {counted(len(same) - 1, 'more time')}" if len(same) > 1 else ""
        raise ValueError(
            f"{where}: {shown(times[first])} occurs twice, in {line(first)} and {line(second)}{count}; keep one row of "
            "each time, or give steps='rows' to take the rows as they are"
        )
    return rows


def shown(time: Any) -> str:
    """A time as a message shows it."""
    return str(time) if not isinstance(time, np.datetime64) else str(pd.Timestamp(time)).removesuffix(" 00:00:00")


def find_step(times: np.ndarray) -> tuple[str | int | None, np.ndarray]:
    """The step of rising times and the grid of that step from the first to the last; an empty grid where none fits."""
    if len(times) < 2:
        return None, times
    differences, counts = np.unique(np.diff(times), return_counts=True)
    common = differences[counts.argmax()]
    if times.dtype.kind == "i":
        grid = np.arange(times[0], times[-1] + 1, common) if _few(times, common) else times[:0]
        return int(common), grid if np.isin(times, grid).all() else grid[:0]
    candidates: list[Any] = [pd.Timedelta(common)] if _few(times, common) else []
    if common >= np.timedelta64(1, "D"):
        candidates += CALENDAR
    found: tuple[str | int | None, np.ndarray] = None, times[:0]
    for step in candidates:
        offset = _offset(step)
        grid = pd.date_range(times[0], times[-1], freq=offset).to_numpy("datetime64[ns]")
        if np.isin(times, grid).all():
            if len(grid) == len(times):
                return offset.freqstr, grid
            found = found if len(found[1]) else (offset.freqstr, grid)
    return found


def _offset(step: Any) -> Any:
    """The offset of a difference of times or of a name in `CALENDAR`."""
    if isinstance(step, pd.Timedelta) and step % pd.Timedelta(days=1) == pd.Timedelta(0):
        return pd.offsets.Day(step.days)
    return pd.tseries.frequencies.to_offset(step)


def _few(times: np.ndarray, step: Any) -> bool:
    return (times[-1] - times[0]) / step <= MOST_FILLED * len(times)


def unequal(times: np.ndarray, where: str, known: bool) -> ValueError:
    """The error for times at unequal steps; `known` says whether a grid holds all of them."""
    steps = np.diff(times)
    differences, counts = np.unique(steps, return_counts=True)
    common = differences[counts.argmax()]
    other = np.flatnonzero(steps != common)
    usual, odd = (_duration(step) for step in (common, steps[other[0]]))
    more = f" and others in {counted(len(other) - 1, 'more place')}" if len(other) > 1 else ""
    ways = "steps='fill' adds the missing rows as missing values, " if known else ""
    return ValueError(
        f"{where}: the steps are unequal: {usual} for most rows, {odd} after {shown(times[other[0]])}{more}; {ways}"
        "steps='rows' takes the rows as they are"
    )


def _duration(step: Any) -> str:
    if not isinstance(step, np.timedelta64):
        return str(step)
    length = pd.Timedelta(step)
    return (
        counted(length.days, "day") if length == pd.Timedelta(days=length.days) else str(length).removeprefix("0 days ")
    )


def counted(count: int, noun: str) -> str:
    """A number and its noun."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
