"""`titans evaluate forecasting`: MSE and MAE over all windows of a series, and learning on the test stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from titanslab.cli.options import Device, output_folder

ABOUT = "Forecasting: MSE and MAE over all windows of a series."


def forecasting(
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="A run of forecasting.", show_default=False)],
    data: Annotated[str, typer.Option("--data", "-d", help="CSV or parquet with the model's columns.")],
    part: Annotated[str, typer.Option(help="train, validation, test, or all rows.")] = "test",
    split: Annotated[
        str | None,
        typer.Option(
            help="Shares (7:1:2), rows (8640/2880/2880) or a set (ETTh1); default: that of the file's name, else the "
            "model's."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for results; default: MODEL/evaluation/forecasting/FILE-PART."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at once; it changes no score.")] = 64,
    save_quantiles: Annotated[bool, typer.Option("--save-quantiles", help="Write quantiles.npy too.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Learn on the stream of windows too: score first, then learn.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of --online.")] = 1e-4,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="Windows from one step of --online to the next; default: the prediction length."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Score a forecasting model on all windows of a part of a series, and write its predictions.

    Example: [bold]titans evaluate forecasting --model runs/etth1 --data ETTh1.csv[/bold]

    Errors are on values standardised by the training rows, over every window: no last batch is dropped. With --online
    the test rows are a stream. A window is scored first; the memory, or the weights, learn from it once all its targets
    have passed. A linear regression stands beside it, frozen and refitted on the same stream.
    """
    from titanslab.data.text import local_path
    from titanslab.runs.loading import find_model_folder, pick_device, prepare_process

    find_model_folder(model)
    name = f"{Path(local_path(data)).name.partition('.')[0]}-{part}"
    place = output_folder(output or Path(model) / "evaluation" / "forecasting" / name)
    prepare_process()
    from rich.console import Console

    from titanslab.evaluation.forecasting.online import check_one_series
    from titanslab.evaluation.forecasting.run import ForecastingRun, open_stage, run_forecasting
    from titanslab.evaluation.forecasting.run_online import run_online

    run = ForecastingRun(model, data, place, part, split, batch_size, pick_device(device), save_quantiles)
    stage = open_stage(run)
    if online:
        check_one_series(stage.windows)
    console = Console(width=None if Console().is_terminal else 1000, soft_wrap=True, highlight=False)
    console.print(_about(stage, run))
    summary = run_forecasting(run, stage)
    console.print(_scores(summary))
    if online:
        console.print(_online_table(run_online(run, stage, rate=rate, every=every)))
    files = "summary.json, predictions.npy, windows.npz" + (", online.json, online.png" if online else "")
    console.print(f"written: {place}/{files}")


def _about(stage: Any, run: Any) -> str:
    from titanslab.data.series.series import describe

    return f"{describe(stage.series, run.data)}; split {stage.split}, part {run.part}"


def _scores(summary: dict[str, Any]) -> str:
    """The scores in words."""
    text = (
        f"MSE {summary['mse']:.4f}, MAE {summary['mae']:.4f}: {summary['windows']:,} windows, all of them "
        f"(drop_last = False), {summary['history_length']} rows in, {summary['prediction_length']} out, "
        "on standardised values"
    )
    if "pinball" in summary:
        inside = ", ".join(f"{share:.1%} inside the {name} band" for name, share in summary["coverage"].items())
        text += f"\npinball loss {summary['pinball']:.4f}; {inside}"
    return text


def _online_table(result: dict[str, Any]) -> Any:
    """A table of the forms of learning, one a row."""
    from rich.table import Table

    frozen = result["forms"]["frozen"]["mse"]
    table = Table(title=f"Learning on the stream, rate {result['rate']:g}, every {result['every']} windows")
    for column in ("form", "MSE", "MAE", "MSE against frozen"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for name, scores in result["forms"].items():
        change = "" if name == "frozen" else f"{scores['mse'] / frozen - 1:+.1%}"
        table.add_row(name, f"{scores['mse']:.4f}", f"{scores['mae']:.4f}", change)
    return table
