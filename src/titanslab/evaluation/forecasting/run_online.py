"""`run_online`: a model with and without learning on the test stream, beside a linear regression that is refitted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data.series import SeriesWindows
from titanslab.evaluation.forecasting.online import Online, Stream, check_stream, score_refitted, score_stream
from titanslab.evaluation.forecasting.refit import LinearRegression
from titanslab.evaluation.forecasting.run import ForecastingRun, Stage, facts_of_run
from titanslab.files import write_whole
from titanslab.progress import bar
from titanslab.runs.loading import load_forecaster
from titanslab.tasks.forecasting import part_windows

ONLINE, CURVES = "online.json", "online.png"
# The forms in the order of the table: what learns, and how.
FORMS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "memory carried": {"carry": True},
    "M_0 learns": {"weights": "memory"},
    "all weights learn": {"weights": "all"},
}
LINEAR, REFITTED = "linear regression, frozen", "linear regression, refitted"


def run_online(run: ForecastingRun, stage: Stage, *, rate: float, every: int | None) -> dict[str, Any]:
    """Score the stream in every form that the model has, and write online.json and online.png.

    The linear regression is fitted to the training windows, and refitted before each block to the finished windows of
    the stream too.

    Args:
        run, stage: of the part that is the stream.
        rate: learning rate of the gradient steps.
        every: windows from one step to the next, and from one refit to the next; None = the prediction length.

    Returns:
        The contents of online.json: for each form the scores, and first window and MSE of its blocks.
    """
    model: Any = load_forecaster(run.model).to(run.device)
    windows, found = stage.windows, {}
    check_stream(model, windows, Online())
    for name, online in forms(model, rate, every):
        with bar(name, "windows") as show:
            found[name] = score_stream(model, windows, online, run.device, show)
    linear = LinearRegression.fit(training_windows(run, stage))
    for name, refit in ((LINEAR, False), (REFITTED, True)):
        found[name] = score_refitted(windows, linear, every, refit)
    result = {
        "forms": {name: _summary(stream, stage) for name, stream in found.items()},
        "rate": rate,
        "every": every or windows.prediction_length,
        **facts_of_run(run, stage),
    }
    run.output.mkdir(parents=True, exist_ok=True)
    write_whole(run.output / CURVES, lambda path: draw_curves(found, path))
    write_whole(run.output / ONLINE, json.dumps(result, indent=1) + "\n")
    return result


def forms(model: Any, rate: float, every: int | None) -> Iterator[tuple[str, Online]]:
    """The forms of `FORMS` that a model has: those of the memory need one."""
    memory = any("memory_weights" in name for name, _ in model.named_parameters())
    for name, options in FORMS.items():
        if memory or (not options.get("carry") and options.get("weights") != "memory"):
            yield name, Online(**options, rate=rate, every=None if options.get("carry") else every)


def training_windows(run: ForecastingRun, stage: Stage) -> SeriesWindows:
    """The windows of the training part, on the scale of the stream's."""
    lengths = (stage.windows.context_length, stage.windows.prediction_length)
    return part_windows(stage.series, "train", stage.split, lengths, stage.scalers, run.data)


def _summary(stream: Stream, stage: Stage) -> dict[str, Any]:
    scores = stream.scores.summary(stage.series[0].columns)
    kept = {name: scores[name] for name in ("windows", "targets", "mse", "mae")}
    return kept | {"blocks": [[start, mse] for start, mse in stream.blocks]}


def draw_curves(streams: dict[str, Stream], path: Path) -> None:
    """Mean MSE of all windows up to each block, one line for each form."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    for name, stream in streams.items():
        starts = np.array([start for start, _ in stream.blocks])
        sizes = np.diff([*starts, stream.scores.windows])
        errors = np.array([mse for _, mse in stream.blocks])
        seen = ~np.isnan(errors)
        total = np.where(seen, errors, 0.0) * sizes
        axes.plot(starts + sizes, total.cumsum() / np.maximum((seen * sizes).cumsum(), 1), label=name)
    axes.set_xlabel("windows of the stream")
    axes.set_ylabel("mean MSE so far")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120, format="png")
