"""`titans forecast`: the rows after the end of a file's series."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import Device, Overwrite

LONGEST = 1_000_000  # rows of a forecast


def forecast(
    file: Annotated[
        Path,
        typer.Argument(
            help="A CSV or parquet file: a column for each variable, or unique_id, ds and y; .csv.gz, .xz, .zst too.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A forecasting model: a run folder or a saved one.", show_default=False)
    ],
    horizon: Annotated[
        int | None, typer.Option("--horizon", min=1, max=LONGEST, help="Rows to forecast; default: the model's own.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The CSV file to write; default: FILE-forecast.csv, here.")
    ] = None,
    overwrite: Overwrite = False,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="A column to forecast, also several times; default: those of the training."),
    ] = None,
    time_column: Annotated[
        str | None, typer.Option("--time-column", help="The column of dates or whole numbers; default: found.")
    ] = None,
    series_column: Annotated[
        str | None,
        typer.Option("--series-column", help="The column of ids in a file of several series, one below another."),
    ] = None,
    steps: Annotated[
        str,
        typer.Option(
            help="Unequal steps: check raises an error, fill adds the missing rows, rows takes them as they are."
        ),
    ] = "check",
    decimal: Annotated[
        str | None, typer.Option(help="The decimal sign of a CSV file, a point or a comma; default: found.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Forecast the rows after the end of each series in a file, with a trained forecasting model.

    Example: [bold]titans forecast my.csv --horizon 96 --model runs/etth1[/bold]

    Writes a CSV file, with the times continued and NAME-q0.1, ... for the quantiles that the model has, and beside it a
    PNG picture of history and forecast. A horizon beyond the model's own is made of several forecasts, each of which
    reads those before it.
    """
    table, picture = output_files(file, output, overwrite)
    from titanslab.data.series.read import SeriesForm
    from titanslab.forecasting.history import open_source, read_history, times_after

    source = open_source(model)
    with naming_options():
        form = SeriesForm("auto", time_column, series_column, column or None, steps, decimal)
        history = read_history(file, source, form)
    rows = horizon or source.prediction_length
    times = times_after(history, rows, file)
    notes, parts = history.notes, -(-rows // source.prediction_length)
    if parts > 1:
        notes.append(
            f"the model forecasts {source.prediction_length:,} rows at once; {rows:,} rows are made of {parts:,} "
            "forecasts, each from those before it"
        )
    for note in notes:
        print(f"titans: {note}", file=sys.stderr, flush=True)
    table.parent.mkdir(parents=True, exist_ok=True)
    network = open_forecaster(source, len(history.series[0].columns), device)
    from titanslab.forecasting.files import write_forecasts
    from titanslab.forecasting.forecast import forecast_series
    from titanslab.forecasting.picture import plot_forecasts

    found = forecast_series(network, history.series, history.scalers, rows, times)
    facts = source.facts
    write_forecasts(
        found,
        table,
        time_column=time_column or (facts.time_column if facts is not None else None),
        series_column=series_column or (facts.series_column if facts is not None else None),
    )
    plot_forecasts(found, picture, f"{file.name}: forecast of {rows:,} rows", max(source.history_length, rows))
    typer.echo(f"{table}\n{picture}")


@contextmanager
def naming_options() -> Iterator[None]:
    """Let a ValueError of `read_series` name the options of the command: --steps rows, and not steps='rows'."""
    try:
        yield
    except ValueError as error:
        text = re.sub(r"\b(steps|decimal)='(\w+|,)'", r"--\1 \2", str(error))
        text = text.replace("choose other columns", "name the columns to forecast with --column")
        raise ValueError(text) from error


def output_files(file: Path, output: Path | None, overwrite: bool) -> tuple[Path, Path]:
    """The table and the picture to write; ValueError where one exists, cannot be written or has another ending."""
    from titanslab.files import check_writable

    table = output or Path(f"{file.name.split('.')[0] or 'series'}-forecast.csv")
    if table.suffix.lower() != ".csv":
        raise ValueError(f"--output {str(table)!r} must end in .csv; the picture gets the same name with .png")
    for path in (table, table.with_suffix(".png")):
        if path.is_dir():
            raise ValueError(f"--output {str(path)!r} is a folder; name a CSV file")
        if path.exists() and not overwrite:
            raise ValueError(f"{str(path)!r} exists; name another file with --output, or replace it with --overwrite")
        check_writable(path, "--output")
    return table, table.with_suffix(".png")


def open_forecaster(source: Any, columns: int, device: str) -> Any:
    """The model of a source on a device, for that many columns."""
    from titanslab.runs.loading import load_forecaster, pick_device, prepare_process

    place = pick_device(device)
    prepare_process()
    model: Any = load_forecaster(source.folder, num_input_channels=columns)
    return model.to(place)
