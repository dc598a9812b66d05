"""The scores of models of a study: of forecasts, of classifiers of DNA, and of grafts."""

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
    writes them for any run. A value that a model cannot have is None. Raises ValueError for scores without a value that
    `settings.values` names.
    """
    wanted = wanted_settings(settings)
    if read(folder).get("settings") == wanted:
        return
    found = SCORERS[settings.verb](run, settings, folder / FOLDER, device)
    for name in settings.values:
        if not isinstance(found.get(name, ""), int | float | None):
            raise ValueError(f"the scores of {settings.verb} have no number {name!r}; they are {', '.join(found)}")
    write_record(folder / RESULT, {"settings": wanted, "results": found})


def wanted_settings(settings: Score) -> dict[str, Any]:
    """The settings on which the file score.json depends."""
    options = {"options": settings.options} if settings.options else {}
    return {"verb": settings.verb, "data": settings.data, **options}


def read(folder: Path) -> dict[str, Any]:
    """The content of score.json; empty without that file."""
    return read_record(folder / RESULT)


def _forecasting(run: Path, score: Score, output: Path, device: str) -> dict[str, Any]:
    """The summary of `titans evaluate forecasting` on the test rows."""
    from titanslab.evaluation.forecasting.run import ForecastingRun, open_stage, run_forecasting
    from titanslab.runs.loading import pick_device

    assert isinstance(score.data, str)
    settings = ForecastingRun(str(run), score.data, output, device=pick_device(device))
    try:
        return run_forecasting(settings, open_stage(settings))
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _dna(run: Path, score: Score, output: Path, device: str) -> dict[str, Any]:
    """The scores of `titans evaluate dna` on labelled sequences, or on the test part of a set."""
    from titanslab.data.dna.labelled import read_labelled
    from titanslab.evaluation.dna.classify import evaluate_classifier, predict
    from titanslab.runs.classifier import open_classifier
    from titanslab.tasks.dna.sets import is_set, read_set

    assert isinstance(score.data, str)
    asked = read_set(score.data)[1] if is_set(score.data) else read_labelled(score.data, name="score.data")
    model, tokenizer, facts = open_classifier(run, device)
    found = predict(model, tokenizer, asked, facts, rc=facts.rc)
    return evaluate_classifier(asked, found, facts.labels)


def _graft(run: Path, score: Score, output: Path, device: str) -> dict[str, Any]:
    """The controls of a graft, and facts recalled."""
    from titanslab.experiments.graft_score import measure

    return measure(run, score, device)


SCORERS: dict[str, Callable[[Path, Score, Path, str], dict[str, Any]]] = {
    "forecasting": _forecasting,
    "dna": _dna,
    "graft": _graft,
}
