"""`read_series`: files of every common form, and one-line errors."""

import gzip

import numpy as np
import pandas as pd
import pytest

from titanslab.data.series import Series, SeriesForm, read_series
from titanslab.data.series.series import describe

WIDE = "date,a,b\n2026-01-01 00:00,1,2\n2026-01-01 01:00,3,\n2026-01-01 02:00,5,6\n2026-01-01 03:00,7,8\n"
VALUES = np.array([[1, 2], [3, np.nan], [5, 6], [7, 8]])


@pytest.fixture
def read(tmp_path):
    def reader(content, name="x.csv", **form):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_series(path, SeriesForm(**form))

    return reader


@pytest.fixture
def error(read):
    def message(*arguments, **form):
        with pytest.raises(ValueError) as found:
            read(*arguments, **form)
        assert "\n" not in str(found.value)
        return str(found.value)

    return message


def same(found: Series, values=VALUES, columns=("a", "b")):
    assert found.columns == columns
    np.testing.assert_array_equal(found.values, values)


def test_a_wide_file_with_dates(read):
    (one,) = read(WIDE)
    same(one)
    assert (one.step, one.missing, one.rows, one.name) == ("h", 1, 4, "")
    assert one.times[0] == np.datetime64("2026-01-01")
    assert one.times_after(2)[-1] == np.datetime64("2026-01-01T05:00")
    assert describe([one], "x.csv") == "x.csv: 4 rows, 2 columns, step h, 1 missing value"


@pytest.mark.parametrize(
    ("content", "name", "form"),
    [
        (WIDE.replace(",", ";"), "x.csv", {}),
        (WIDE.replace(",", "\t"), "x.tsv", {}),
        (WIDE.replace(",", ";").replace("5;6", "5,0;6"), "x.csv", {"decimal": ","}),
        (WIDE.replace(",", ";").replace("5;6", "5,0;6"), "x.csv", {}),
        (WIDE.replace(",", ";").replace("\n", ";\n"), "x.csv", {}),
        (WIDE.replace("date,", "Date,Time,").replace("01 0", "01,0"), "x.csv", {}),
        (WIDE.replace(",", ";").replace("5;6", "5,0;6").replace("2026-01-01", "1.1.2026"), "x.csv", {}),
        (gzip.compress(WIDE.encode(), mtime=0), "x.csv.gz", {}),
        (b"\xef\xbb\xbf" + WIDE.encode(), "x.csv", {}),
        (WIDE.replace("date", "when"), "x.csv", {}),
        (WIDE.replace("\n", "\r\n"), "x.csv", {}),
        (WIDE.replace("date,", "clock,"), "x.csv", {"time_column": "clock"}),
        ("".join(WIDE.splitlines(keepends=True)[i] for i in (0, 3, 1, 4, 2)), "x.csv", {}),
    ],
)
def test_the_same_file_in_other_clothes(content, name, form, read):
    (one,) = read(content, name, **form)
    same(one)
    assert one.step == "h"


def test_a_file_in_latin_1(read):
    (one,) = read("date,W/m²\n2026-01-01,1\n2026-01-02,2\n2026-01-03,3\n".encode("latin-1"))
    assert one.columns == ("W/m²",)
    assert one.step == "D"


def test_parquet(tmp_path):
    table = pd.DataFrame(
        VALUES, columns=["a", "b"], index=pd.date_range("2026-01-01", periods=4, freq="h", name="date")
    )
    for i, form in enumerate((table, table.reset_index(), table.rename_axis(None))):
        form.to_parquet(tmp_path / f"{i}.parquet")
        (one,) = read_series(tmp_path / f"{i}.parquet")
        same(one)
        assert one.step == "h"


def test_a_file_without_dates(read):
    (one,) = read("a,b\n1,2\n3,\n5,6\n7,8\n")
    same(one)
    assert (one.times, one.step) == (None, None)
    assert list(one.times_after(2)) == [4, 5]
    (bare,) = read("1,2\n3,\n5,6\n7,8\n")  # and without names
    same(bare, columns=("1", "2"))


def test_row_numbers_that_pandas_wrote_are_no_column(tmp_path):
    pd.DataFrame(VALUES, columns=["a", "b"]).to_csv(tmp_path / "x.csv")
    same(read_series(tmp_path / "x.csv")[0])


def test_columns_can_be_chosen(read):
    (one,) = read(WIDE.replace("\n", ",note\n"), columns=["b"])
    same(one, VALUES[:, 1:], ("b",))


LONG = "unique_id,ds,y\nB,2026-01-02,4\nA,2026-01-01,1\nA,2026-01-02,2\nA,2026-01-03,\nB,2026-01-01,3\n"


@pytest.mark.parametrize(
    ("text", "form"),
    [(LONG, {}), (LONG.replace("unique_id,ds,y", "shop,day,sold"), {"series_column": "shop", "columns": ["sold"]})],
)
def test_a_long_file_is_one_series_for_each_id(text, form, read):
    first, second = read(text, **form)
    assert (first.name, second.name) == ("A", "B")
    np.testing.assert_array_equal(first.values[:, 0], [1, 2, np.nan])
    np.testing.assert_array_equal(second.values[:, 0], [3, 4])
    assert first.step == second.step == "D"


@pytest.mark.parametrize(
    ("start", "freq", "step"),
    [
        ("2026-01-01", "MS", "MS"),
        ("2024-01-31", "ME", "ME"),
        ("2026-01-01", "B", "B"),
        ("2026-01-07", "W-WED", "7D"),
        ("2020-01-01", "YS", "YS-JAN"),
        ("2026-03-28 22:00", "15min", "15min"),
    ],
)
def test_steps_of_the_calendar(start, freq, step, read):
    dates = pd.date_range(start, periods=9, freq=freq)
    (one,) = read("ds,y\n" + "".join(f"{date},1\n" for date in dates))
    assert one.step == step
    assert one.times_after(1)[0] == pd.date_range(dates[-1], periods=2, freq=freq)[1]


def test_whole_numbers_as_times(read):
    (one,) = read("Year,y\n2001,1\n2002,2\n2003,3\n")
    assert one.step == 1
    assert list(one.times_after(2)) == [2004, 2005]
    with pytest.raises(ValueError, match=r"holds numbers that are not whole; give time_column='' to count rows"):
        read("time,y\n0.1,1\n0.2,2\n0.3,3\n")
    assert read("time,y\n0.1,1\n0.2,2\n0.3,3\n", time_column="", columns=["y"])[0].step is None


def test_dates_with_the_day_first_and_with_zones(read):
    (one,) = read("date,y\n12/01/2026,1\n13/01/2026,2\n14/01/2026,3\n")
    assert str(one.times[0])[:10] == "2026-01-12"
    days = "".join(f"{day:02}/02/2026,1\n" for day in range(1, 13))  # all of them are dates with the month first too
    (one,) = read("date,y\n" + days)
    assert (one.step, str(one.times[0])[:10]) == ("D", "2026-02-01")
    (one,) = read("date,y\n" + "".join(f"{month:02}/01/2026,1\n" for month in range(1, 13)))
    assert (one.step, str(one.times[1])[:10]) == ("MS", "2026-02-01")
    (one,) = read("date,y\n03.01.2026,1\n04.02.2026,2\n09.09.2026,3\n", steps="rows")
    assert str(one.times[0])[:10] == "2026-01-03"
    zoned = "date,y\n2026-03-29T00:00+01:00,1\n2026-03-29T01:00+01:00,2\n2026-03-29T03:00+02:00,3\n"
    assert read(zoned)[0].step == "h"  # the clock's change is no gap


GAP = "date,y\n2026-01-01,1\n2026-01-02,2\n2026-01-05,5\n2026-01-06,6\n2026-01-07,7\n"


def test_unequal_steps(read, error):
    message = error(GAP.replace("2026-01-06,6\n", "2026-01-06 07:00,6\n"))
    assert "the steps are unequal" in message
    assert "steps='fill'" not in message
    holes = GAP.replace("01-07", "01-09")
    message = error(holes)
    assert "1 day for most rows, 3 days after 2026-01-02 and others in 1 more place;" in message
    assert "steps='fill' adds the missing rows" in message
    (one,) = read(holes, steps="fill")
    np.testing.assert_array_equal(one.values[:, 0], [1, 2, np.nan, np.nan, 5, 6, np.nan, np.nan, 7])
    (one,) = read(holes, steps="rows")
    assert (one.rows, one.step) == (5, None)
    assert list(one.times_after(1)) == [5]


def test_a_date_that_occurs_twice(read, error):
    twice = GAP.replace("01-07", "01-02")
    assert "2026-01-02 occurs twice, in line 3 and line 6; keep one row" in error(twice)
    assert read(twice, steps="rows")[0].rows == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("date,a\n", "has a line of names and no rows"),
        (WIDE.replace("5,6", "5,n/v"), "column 'b' holds text in line 4 ('n/v'); correct it, empty the field"),
        (WIDE.replace("5,6", "5,inf"), "column 'b' is infinite in line 4"),
        (WIDE.replace("5,6", f"5,{'9' * 400}"), "column 'b' is infinite in line 4"),
        (
            WIDE.replace("1,2", "1.5,2").replace("5,6", '"5,5",6'),
            "column 'a' holds text in line 4 ('5,5'); its decimal",
        ),
        (WIDE.replace("2026-01-01 02:00", "noon"), "column 'date' holds no date in line 4"),
        (WIDE.replace("2026-01-01 02:00", ""), "column 'date' is empty in line 4; give every row its time"),
        (WIDE.replace("5,6", "5,6,7"), "cannot be read as CSV"),
        (LONG.replace("2026-01-02,2", "2026-01-01,2"), "series 'A': 2026-01-01 occurs twice, in line 3 and line 4"),
        (LONG.replace("A,2026-01-03", ",2026-01-03"), "column 'unique_id' is empty in line 5"),
    ],
)
def test_errors_of_a_file(content, message, error):
    assert message in error(content)


def test_errors_of_damaged_files(error, tmp_path):
    assert "it does not decompress" in error(gzip.compress(WIDE.encode() * 99, mtime=0)[:60], "x.csv.gz")
    assert "cannot be read as parquet" in error(b"PAR1 and then nothing", "x.parquet")
    with pytest.raises(FileNotFoundError, match=r"series 'none\.csv' does not exist"):
        read_series("none.csv")
    with pytest.raises(ValueError, match="is a folder; name a file"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"columns": ["c"]}, "has no column 'c', which columns names; its columns: 'date', 'a', 'b'"),
        ({"time_column": "c"}, "has no column 'c', which time_column names"),
        ({"form": "long"}, "has no column 'unique_id', which series_column names"),
        ({"steps": "none"}, "steps must be one of check, fill, rows, got 'none'"),
        ({"decimal": ";"}, "decimal must be one of ., ,, got ';'"),
    ],
)
def test_errors_of_options(form, message, error):
    assert message in error(WIDE, **form)
