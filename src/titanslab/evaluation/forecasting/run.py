"""`run_forecasting`: a model's scores on a part of some series, and the predictions that they are computed from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data.series import Scaler, Series, SeriesFacts, SeriesForm, SeriesWindows, read_series
from titanslab.data.series.facts import FACTS
from titanslab.evaluation.forecasting.predict import all_forecasts
from titanslab.files import file_identity, fingerprint, remove_whole, write_whole
from titanslab.progress import bar
from titanslab.runs.loading import find_model_folder, forecaster_config, load_forecaster
from titanslab.runs.versions import versions
from titanslab.tasks.forecasting import NAMED, Scores, fit_scalers, form_of, part_windows, split_name

SUMMARY, PREDICTIONS, WINDOWS, QUANTILES = "summary.json", "predictions.npy", "windows.npz", "quantiles.npy"


@dataclass(frozen=True)
class ForecastingRun:
    """A model and the rows that it is scored on.

    Args:
        model: folder of a run or of a saved forecasting model, with series.json.
        data: a file of series with the model's columns.
        output: folder for summary.json, predictions.npy and windows.npz.
        part: "train", "validation", "test" or "all".
        split: as in `split_rows`; None = that of the file's name, else the model's own.
        batch_size: windows at once; it changes no score.
        device: of the model.
        save_quantiles: write quantiles.npy too.
    """

    model: str
    data: str
    output: Path
    part: str = "test"
    split: str | None = None
    batch_size: int = 64
    device: Any = "cpu"
    save_quantiles: bool = False


@dataclass(frozen=True)
class Stage:
    """The windows of a run, and the facts about them; see `open_stage`."""

    windows: SeriesWindows
    series: list[Series]
    facts: SeriesFacts
    split: str
    scalers: list[Scaler]


def open_stage(run: ForecastingRun) -> Stage:
    """Read the data of a run and cut its windows; no weights are read.

    Raises:
        FileNotFoundError, ValueError: in one line, of the model's folder, the data or the split.
    """
    folder = find_model_folder(run.model)
    config = forecaster_config(run.model)
    beside = Path(run.model)  # of a run that has not finished, whose model is in a checkpoint
    facts = SeriesFacts.read(folder if (folder / FACTS).is_file() else beside)
    named = split_name(run.data)
    split = run.split or (named if named in NAMED else facts.split)
    series = read_series(run.data, form_of(split, form_from(facts)))
    scalers = fit_scalers(series, split, run.data) if facts.scaler is None else [facts.scaler]
    lengths = (config.history_length, config.prediction_length)
    windows = part_windows(series, run.part, split, lengths, scalers, run.data)
    return Stage(windows, series, facts, split, scalers)


def form_from(facts: SeriesFacts) -> SeriesForm:
    """The form of files of a model's training data."""
    return SeriesForm(
        facts.form, facts.time_column, facts.series_column, facts.columns, steps=facts.steps, decimal=facts.decimal
    )


def run_forecasting(run: ForecastingRun, stage: Stage) -> dict[str, Any]:
    """Score all windows, and write predictions, windows and at last the summary, each whole or not at all.

    predictions.npy is float32 `[W, H, C]` on the standardised scale. windows.npz has the standardised `values [N, C]`
    (NaN = missing), `starts [W]`, the row of `values` with a window's first target, `series [W]` and `rows [W]`, the
    series and its row number of that target, and `mean` and `std`. So

        target = values[starts[:, None] + np.arange(H)];  mse = np.nanmean((predictions - target) ** 2)

    Returns:
        The contents of summary.json.
    """
    model: Any = load_forecaster(run.model).to(run.device)
    columns, scores = stage.series[0].columns, Scores(model.config.quantiles)
    run.output.mkdir(parents=True, exist_ok=True)
    remove_whole(run.output / SUMMARY)  # that of earlier predictions, which are replaced

    def predictions(path: Path, quantiles: Path | None = None) -> None:
        _write_predictions(model, run, stage, scores, (path, quantiles))

    if run.save_quantiles and model.config.quantiles:
        write_whole(
            run.output / QUANTILES,
            lambda quantiles: write_whole(run.output / PREDICTIONS, lambda path: predictions(path, quantiles)),
        )
    else:
        write_whole(run.output / PREDICTIONS, predictions)
    write_whole(run.output / WINDOWS, lambda path: save_windows(path, stage))
    summary = scores.summary(columns) | facts_of_run(run, stage)
    write_whole(run.output / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def _write_predictions(
    model: Any, run: ForecastingRun, stage: Stage, scores: Scores, paths: tuple[Path, Path | None]
) -> None:
    """Write predictions (and quantiles where a second path is given) batch by batch, and add them to the scores."""
    config, windows = model.config, stage.windows
    shape = (len(windows), config.prediction_length, len(stage.series[0].columns))
    shapes = (shape, (*shape, len(config.quantiles)))
    files = [
        None if path is None else np.lib.format.open_memmap(path, "w+", np.float32, size)
        for path, size in zip(paths, shapes, strict=True)
    ]
    with bar("forecasts", "windows") as show:
        for indices, found in all_forecasts(model, windows, run.batch_size, run.device):
            for file, values in zip(files, (found.point, found.quantiles), strict=True):
                if file is not None:
                    file[indices.start : indices.stop] = values
            scores.add(found.point, found.target, found.observed, found.quantiles)
            show(indices.stop, len(windows))
    for file in files:
        if file is not None:
            file.flush()


def save_windows(path: Path, stage: Stage) -> None:
    """Write windows.npz, see `run_forecasting`."""
    windows = stage.windows
    begins = np.cumsum([0, *(len(values) for values in windows.values)])  # of each series' rows in `values`
    which, row = windows.index.T
    places = np.array([windows.place(i) for i in range(len(windows))])
    scaler = stage.facts.scaler
    scale: dict[str, Any] = {} if scaler is None else {"mean": scaler.mean, "std": scaler.std}
    np.savez(
        path,
        values=np.concatenate(windows.values),
        starts=begins[which] + row + windows.context_length,
        series=places[:, 0],
        rows=places[:, 1],
        **scale,
    )


def facts_of_run(run: ForecastingRun, stage: Stage) -> dict[str, Any]:
    """The facts that the scores depend on, as JSON values."""
    folder = find_model_folder(run.model)
    weights = fingerprint({"files": [file_identity(file) for file in sorted(folder.glob("*.safetensors"))]})
    names = [one.name for one in stage.series if one.name]
    return {
        "model": run.model,
        "weights": weights,
        "data": {"file": Path(run.data).name, "identity": file_identity(run.data)},
        "series": len(names) or 1,
        "missing": sum(one.missing for one in stage.series),
        "split": stage.split,
        "part": run.part,
        "history_length": stage.windows.context_length,
        "prediction_length": stage.windows.prediction_length,
        "scale": "standardised by the training rows",
        "drop_last": False,
        "versions": versions(),
    }
