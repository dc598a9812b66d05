"""The progress of jobs whose runs have epochs in the place of steps."""

import json
from types import SimpleNamespace

from titanslab.experiments.jobs import STEPS, TRAINING, _amounts, _Work, unit_of
from titanslab.training.recipe import parse_recipe

BATCH = 100


def job(folder):
    """A job with one run of ten epochs, in a folder in which nothing was trained yet."""
    recipe = parse_recipe(
        {
            "model": {"architecture": "cnn"},
            "sequences": {"train": "a.tsv"},
            "training": {"epochs": 10, "batch_size": BATCH},
        }
    )
    return SimpleNamespace(folder=folder, stages=["base"], recipes=lambda: [recipe], tunes=False, rounds=list)


def log(folder, step, of):
    (folder / "base").mkdir(parents=True, exist_ok=True)
    with open(folder / "base" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "of": of, "loss": 1.0}) + "\n")


def test_epochs_count_as_the_steps_that_runs_have_counted(tmp_path):
    jobs = [job(tmp_path / "a"), job(tmp_path / "b")]
    work = [_Work(each) for each in jobs]
    row = TRAINING * BATCH / 1000
    assert unit_of(jobs) == "rows"
    assert _amounts(work) == (0, int(2 * STEPS * row))
    log(tmp_path / "a", 20, 200)
    assert _amounts(work) == (20 * row, (200 + 200) * row)
    log(tmp_path / "b", 10, 400)
    assert _amounts(work) == ((20 + 10) * row, (200 + 400) * row)
    log(tmp_path / "a", 50, 200)
    work[0].finished = True  # by early stopping
    assert _amounts(work) == ((50 + 10) * row, (50 + 400) * row)
    again = [_Work(each) for each in jobs]
    assert _amounts(again) == (0, (200 - 50 + 400 - 10) * row), "a run that goes on has its own length"
