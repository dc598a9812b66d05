"""Training, validation and test rows: the standard splits of the named sets, and shares of any other series."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from titanslab.data.series import Scaler, Series, SeriesForm, SeriesWindows
from titanslab.data.series.windows import Rows

PARTS = ("train", "validation", "test")
SHARES = "7:1:2"


@dataclass(frozen=True)
class NamedSet:
    """A data set of the field: its split, and the names that its file goes by."""

    split: str
    files: tuple[str, ...]


# Splits of Informer (ETT: 12, 4 and 4 months of 30 days) and of the Time-Series-Library (all others).
NAMED: dict[str, NamedSet] = {
    "ETTh1": NamedSet("8640/2880/2880", ("etth1",)),
    "ETTh2": NamedSet("8640/2880/2880", ("etth2",)),
    "ETTm1": NamedSet("34560/11520/11520", ("ettm1",)),
    "ETTm2": NamedSet("34560/11520/11520", ("ettm2",)),
    "Weather": NamedSet(SHARES, ("weather",)),
    "ECL": NamedSet(SHARES, ("ecl", "electricity")),
    "Traffic": NamedSet(SHARES, ("traffic",)),
    "Exchange": NamedSet(SHARES, ("exchange", "exchange_rate")),
}


def split_name(file: str | Path) -> str:
    """The name of the set that a file's name stands for, such as "ETTh1" for ETTh1.csv; "7:1:2" for other names."""
    stem = Path(file).name.partition(".")[0].lower()
    return next((name for name, one in NAMED.items() if stem in one.files), SHARES)


def form_of(split: str, form: SeriesForm | None = None) -> SeriesForm:
    """`form`, in which a named set's rows are taken as they are: its protocol counts rows, and Weather has two rows
    with one date."""
    form = form or SeriesForm()
    named = split.lower() in {name.lower() for name in NAMED}
    return replace(form, steps="rows") if named and form.steps == "check" else form


def split_rows(split: str, rows: int, where: str) -> dict[str, Rows]:
    """First and end row of each of `PARTS` in a series of `rows` rows.

    Args:
        split: the name of a set; shares such as "7:1:2", of which training and test are rounded down; or numbers of
            rows such as "8640/2880/2880", which may leave rows over at the end.
        where: how errors call the series.

    Raises:
        ValueError: another split, or one with more rows than there are.
    """
    known = {name.lower(): name for name in NAMED}
    text = NAMED[known[split.lower()]].split if split.lower() in known else split
    if match := re.fullmatch(r"(\d+)/(\d+)/(\d+)", text):
        train, validation, test = (int(n) for n in match.groups())
        if train + validation + test > rows:
            raise ValueError(
                f"{where} has {rows:,} rows, and the split {split!r} needs {train + validation + test:,}; give "
                f"another split, such as {SHARES!r}"
            )
    elif match := re.fullmatch(r"(\d+):(\d+):(\d+)", text):
        shares = [int(n) for n in match.groups()]
        if sum(shares) == 0:
            raise ValueError(f"split {split!r} has no share above 0; give shares such as {SHARES!r}")
        train, test = (int(rows * (share / sum(shares))) for share in (shares[0], shares[2]))
        validation = rows - train - test
    else:
        near = difflib.get_close_matches(split.lower(), known, n=1, cutoff=0.5)
        raise ValueError(
            f"split must be shares such as {SHARES!r}, rows such as '8640/2880/2880', or one of {', '.join(NAMED)}; "
            f"got {split!r}{f'; did you mean {known[near[0]]!r}?' if near else ''}"
        )
    return {
        "train": (0, train),
        "validation": (train, train + validation),
        "test": (train + validation, train + validation + test),
    }


def fit_scalers(series: Sequence[Series], split: str, where: str) -> list[Scaler]:
    """For each series a scaler by its own training rows."""
    found = []
    for one in series:
        first, stop = split_rows(split, one.rows, where)["train"]
        found.append(Scaler.fit(one.values[first:stop]))
    return found


def part_windows(
    series: Sequence[Series],
    part: str,
    split: str,
    lengths: tuple[int, int],
    scalers: Sequence[Scaler],
    where: str,
    *,
    stride: int = 1,
) -> SeriesWindows:
    """All windows of one part of some series, standardised.

    Targets are rows of the part alone; the first histories of validation and test reach back into the part before, as
    in the Time-Series-Library. No window is dropped.

    Args:
        series: with the same columns.
        part: one of `PARTS`, or "all" for every row.
        split: as in `split_rows`.
        lengths: context_length and prediction_length.
        scalers: one for each series, see `fit_scalers`; or one for all.
        where: how errors call the series.
        stride: rows from one window to the next.

    Raises:
        ValueError: an unknown part, or one without a window.
    """
    if part not in (*PARTS, "all"):
        raise ValueError(f"part must be one of {', '.join(PARTS)}, all; got {part!r}")
    rows = [(0, one.rows) if part == "all" else split_rows(split, one.rows, where)[part] for one in series]
    each = list(scalers) * len(series) if len(scalers) == 1 else list(scalers)
    windows = SeriesWindows(series, *lengths, rows=rows, scalers=each, pad=len(series) > 1, stride=stride)
    windows.check(where, part)
    return windows


def constant_columns(series: Sequence[Series], split: str, where: str) -> list[str]:
    """Names of columns whose training rows hold one value, which no scaler changes the size of."""
    names: list[str] = []
    for one in series:
        first, stop = split_rows(split, one.rows, where)["train"]
        train = one.values[first:stop]
        with np.errstate(invalid="ignore"):
            same = np.nanmax(train, axis=0, initial=-np.inf) <= np.nanmin(train, axis=0, initial=np.inf)
        names += [name for name, flat in zip(one.columns, same, strict=True) if flat and name not in names]
    return names
