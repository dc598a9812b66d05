"""The scores of models of a study that are no language models: forecasts, and classifiers of DNA."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.experiments.record import read_record, write_record

if TYPE_CHECKING:
    from titanslab.experiments.sections import Score

FOLDER, RESULT = "score", "score.json"


def measure_once(run: Path, settings: Score, folder: Path, device: str) -> None:
    """Score the model of a run, and write the scores to score.json in `folder`.

    A file with the same settings is kept. Predictions are not: those of a study take many GB, and `titans evaluate`
    writes them for any run. Raises ValueError for scores without a number that `settings.values` names.
    """
    wanted = wanted_settings(settings)
    if read(folder).get("settings") == wanted:
        return
    assert settings.data is not None
    found = SCORERS[settings.verb](run, settings.data, folder / FOLDER, device)
    for name in settings.values:
        if not isinstance(found.get(name), int | float):
            raise ValueError(f"the scores of {settings.verb} have no number {name!r}; they are {', '.join(found)}")
    write_record(folder / RESULT, {"settings": wanted, "results": found})


def wanted_settings(settings: Score) -> dict[str, Any]:
    """The settings on which the file score.json depends."""
    return {"verb": settings.verb, "data": settings.data}


def read(folder: Path) -> dict[str, Any]:
    """The content of score.json; empty without that file."""
    return read_record(folder / RESULT)


def _forecasting(run: Path, data: str, output: Path, device: str) -> dict[str, Any]:
    """The summary of `titans evaluate forecasting` on the test rows."""
    from titanslab.evaluation.forecasting.run import ForecastingRun, open_stage, run_forecasting
    from titanslab.runs.loading import pick_device

    settings = ForecastingRun(str(run), data, output, device=pick_device(device))
    try:
        return run_forecasting(settings, open_stage(settings))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _dna(run: Path, data: str, output: Path, device: str) -> dict[str, Any]:
    """The scores of `titans evaluate dna` on labelled sequences, or on the test part of a set."""
    from titanslab.data.dna.labelled import read_labelled
    from titanslab.evaluation.dna.classify import evaluate_classifier, predict
    from titanslab.runs.classifier import open_classifier
    from titanslab.tasks.dna.sets import is_set, read_set

    asked = read_set(data)[1] if is_set(data) else read_labelled(data, name="score.data")
    model, tokenizer, facts = open_classifier(run, device)
    found = predict(model, tokenizer, asked, facts, rc=facts.rc)
    return evaluate_classifier(asked, found, facts.labels)


SCORERS: dict[str, Callable[[Path, str, Path, str], dict[str, Any]]] = {"forecasting": _forecasting, "dna": _dna}
