"""The learning rate of a row: short runs at several rates, of which the one with the lowest validation loss counts."""

from __future__ import annotations

import copy
import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.experiments.record import read_record, write_record

if TYPE_CHECKING:
    from titanslab.experiments.sections import Perplexity, Sweep
    from titanslab.training.recipe import Recipe

FOLDER, RECORD = "sweep", "sweep.json"


def tune(recipe: Recipe, sweep: Sweep, perplexity: Perplexity, folder: Path, device: str) -> None:
    """Train a short run at each rate, and write rates, losses and the chosen rate to sweep.json in `folder`.

    A run that diverges has no loss. Finished rates are kept, and an interrupted run continues. Of a finished run the
    log stays, and its weights are deleted.

    Raises:
        ValueError: every rate diverged.
    """
    from titanslab.experiments.text_loss import measure
    from titanslab.training.run import RECIPE, train
    from titanslab.training.watchdog import NonFiniteError

    record = read(folder)
    done = {entry["rate"]: entry for entry in record.get("runs", ())}
    if record.get("rates") == sweep.rates and record.get("chosen") is not None:
        return
    for rate in sweep.rates:
        if rate in done:
            continue
        output, short = folder / FOLDER / f"{rate:g}", short_recipe(recipe, rate, sweep.share)
        print(f"{folder.name}: learning rate {rate:g}, {short.training.steps} steps", file=sys.stderr, flush=True)
        entry: dict[str, Any] = {"rate": rate, "steps": short.training.steps, "loss": None}
        try:
            entry["training_loss"] = train(short, output, resume=(output / RECIPE).exists())["loss"]
            settings = copy.copy(perplexity)
            settings.max_tokens = sweep.max_tokens
            (result,) = measure(output, settings, [recipe.data.sequence_length], device)
            entry["loss"] = result.loss if math.isfinite(result.loss) else None
        except NonFiniteError as error:
            entry["diverged"] = str(error)
        done[rate] = entry
        _write(folder, sweep.rates, [*done.values()], None)
        _remove_weights(output)
    runs = [done[rate] for rate in sweep.rates]
    finite = [entry for entry in runs if entry["loss"] is not None]
    if not finite:
        raise ValueError(f"every learning rate of the sweep diverged: {', '.join(f'{rate:g}' for rate in sweep.rates)}")
    _write(folder, sweep.rates, runs, min(finite, key=lambda entry: entry["loss"])["rate"])


def short_recipe(recipe: Recipe, rate: float, share: float) -> Recipe:
    """The recipe of a short run: a share of the steps, with the whole schedule, at another rate."""
    from titanslab.experiments.study import scaled

    short = copy.deepcopy(recipe)
    settings = short.training
    settings.learning_rate = rate
    for name in ("steps", "warmup_steps", "write_cost_warmup"):
        setattr(settings, name, scaled(getattr(settings, name), share))
    return short


def read(folder: Path) -> dict[str, Any]:
    """The content of sweep.json; empty without that file."""
    return read_record(folder / RECORD)


def _write(folder: Path, rates: list[float], runs: list[dict[str, Any]], chosen: float | None) -> None:
    content = {"rates": rates, "runs": runs, "chosen": chosen}
    write_record(folder / RECORD, content)


def _remove_weights(run: Path) -> None:
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    for path in run.glob("*.safetensors"):
        path.unlink()
