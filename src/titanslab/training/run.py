"""One training run: a recipe in, a run folder out.

The folder holds recipe.toml (every default filled in), versions.json, metrics.jsonl, loss.png, checkpoints/, and at the
end the model with its tokenizer and result.json.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from accelerate import PartialState
from accelerate.utils import set_seed

from titanslab.data import load_tokenizer
from titanslab.data.bpe import bpe_size
from titanslab.denormals import as_zero
from titanslab.documents import read_json
from titanslab.files import check_writable, naming, put_in_place, write_whole
from titanslab.locks import only_writer
from titanslab.models.config import PRESETS
from titanslab.progress import Progress, bar
from titanslab.runs import checkpoints
from titanslab.runs.versions import versions
from titanslab.training.best import BestValidation, take_best
from titanslab.training.callbacks import METRICS, MetricsWriter, ProgressLine, truncate_metrics
from titanslab.training.interrupt import StopOnSignal
from titanslab.training.kinds import open_recipe, trainer_kind
from titanslab.training.picture import draw_losses
from titanslab.training.recipe import BEST, TEXT, Recipe, load_recipe
from titanslab.training.resume import check_rows, checkpoint_to_resume
from titanslab.training.settings import MOST
from titanslab.training.sources import Reading, RunData
from titanslab.training.trainer import make_trainer
from titanslab.training.watchdog import NonFiniteError, check_weights

RECIPE, VERSIONS, RESULT = "recipe.toml", "versions.json", "result.json"
PICTURE = "loss.png"
NO_CHECKPOINT = "There is no checkpoint yet"
TOKENIZER = "tokenizer"  # folder of a tokenizer that was made for the run
# Keys that no loss depends on; they may change when a run is resumed.
FREE_KEYS = {
    "model": {"template", "max_new_tokens", "temperature"},
    "training": {"log_every", "save_every", "keep_checkpoints", "report_to", "eval_batch_size", "sharding", "keep"},
}
# Keys that decide the rows of a step together with the number of processes; `check_rows` compares the rows.
BATCH_KEYS = {"batch_size", "accumulation", "global_batch_size"}


class Result(msgspec.Struct):
    """result.json: steps, tokens read, last loss, seconds of the last session, the step it was resumed from, and
    step and score of the validation whose weights were kept."""

    steps: Annotated[int, msgspec.Meta(ge=0)]
    tokens: Annotated[int, msgspec.Meta(ge=0)]
    loss: float | None
    seconds: float
    resumed_from: int | None = None
    best_step: int | None = None
    best_score: float | None = None


Say = Callable[[str], None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def train(
    recipe: Recipe, output: str | Path, *, resume: bool = False, say: Say = _say, processes: int = 1
) -> dict[str, Any]:
    """Train a model by a recipe into the folder `output`.

    Everything that can be checked is checked before the folder is made or changed.

    Args:
        recipe, output: the checked recipe; a new or empty folder, or with `resume` that of an interrupted run.
        resume: go on from the last whole checkpoint; the losses are those of a run that was never stopped.
        say: called in the first process with each message; by default it prints to stderr.
        processes: most processes that encode the texts. Above 1 they are started anew, so that a program must be
            guarded by `if __name__ == "__main__"`.

    Returns:
        The content of result.json: steps, tokens, last loss, seconds, and the step that the run was resumed from.

    Raises:
        ValueError: the folder holds something else, another process writes it, or the recipe cannot work with the data
            or the model.
        NonFiniteError: the loss, a gradient or a weight is not finite; nothing of it was saved.
        KeyboardInterrupt: SIGINT or SIGTERM came while it trained; a checkpoint of the last step was saved. After a
            second signal it may not have been.
    """
    output = Path(output)
    check_output(output, recipe, resume)
    if resume and (output / RESULT).exists():
        say(f"the run in {output} is finished; nothing to resume")
        fix = "delete it, and resume again: the run then goes on from its last checkpoint"
        return msgspec.to_builtins(read_json(output / RESULT, Result, fix=fix))
    world = PartialState(cpu=recipe.training.cpu)
    with only_writer(output, "output folder") if world.is_main_process else contextlib.nullcontext():
        check_output(output, recipe, resume)  # another process may have written between
        return _train(recipe, output, resume, say, world, processes)


def _train(recipe: Recipe, output: Path, resume: bool, say: Say, world: PartialState, processes: int) -> dict[str, Any]:
    """`train` after its checks; the first process holds the folder."""
    world.wait_for_everyone()
    say = say if world.is_main_process else lambda text: None
    set_seed(recipe.training.seed)
    kept = load_tokenizer(str(output / TOKENIZER)) if resume and (output / TOKENIZER).exists() else None
    reading = Reading(processes, leads=world.is_local_main_process)
    data, make = open_recipe(recipe, world.num_processes, reading, kept, say)
    model = make()
    say(f"model: {sum(p.numel() for p in model.parameters()):,} parameters{_about_preset(recipe, model)}")
    metrics = MetricsWriter(output / METRICS, data.bytes_per_token)
    stop = StopOnSignal() if world.is_main_process else StopOnSignal(message="")
    settings = recipe.training
    best = BestValidation(output if settings.keep == BEST else None, data.score, settings.patience)
    stepwise = with_steps(recipe, data, world.num_processes)
    trainer = make_trainer(stepwise, model, data, output, [stop, metrics, best], trainer_kind(recipe))
    world.wait_for_everyone()
    if world.is_main_process:
        _open_folder(output, recipe, data.tokenizer, resume)
    world.wait_for_everyone()
    checkpoint = checkpoint_to_resume(output, trainer, say) if resume else None
    step = checkpoints.step_of(checkpoint) if checkpoint else None
    if checkpoint is not None:
        check_rows(checkpoint, recipe, load_recipe(output / RECIPE), world.num_processes)
    if resume and world.is_main_process:
        truncate_metrics(output / METRICS, step or 0)
    world.wait_for_everyone()
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if world.is_main_process:
            show: Progress = stack.enter_context(bar("training", "steps", start=None, every=None, keep=True))
            trainer.add_callback(ProgressLine(show, metrics, data.counted))
        stack.enter_context(stop)
        try:
            with as_zero():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            check_weights(model, trainer.state.global_step)
        except NonFiniteError as error:
            last = checkpoints.last_complete(output / "checkpoints")
            raise NonFiniteError(
                f"{error}. {f'The last good checkpoint is {last}' if last else NO_CHECKPOINT}"
            ) from None
    if world.is_main_process:
        _draw(output, say, data.unit)
    if stop.stopped:
        raise KeyboardInterrupt
    found = take_best(output, model) if settings.keep == BEST else None
    if found is not None:
        say(f"the model is that of step {found.step:,}, whose validation was best: {found.name} {found.score:.4f}")
    result = {
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "loss": metrics.last_loss,
        "seconds": round(time.perf_counter() - start, 1),
        "resumed_from": step,
        "best_step": None if found is None else found.step,
        "best_score": None if found is None else found.score,
    }
    _save_final(trainer, output, result, data)
    return result


def with_steps(recipe: Recipe, data: RunData, processes: int) -> Recipe:
    """The recipe with the steps that its epochs take, and a validation each epoch where the recipe says no other.

    Raises ValueError for epochs of data without an end.
    """
    settings = recipe.training
    if settings.epochs is None:
        return recipe
    if data.per_epoch is None:
        raise ValueError(f"training.epochs = {settings.epochs:g} needs data with an end; set training.steps")
    epoch = data.per_epoch / settings.rows(processes)
    steps = max(1, math.ceil(settings.epochs * epoch))
    if steps > MOST:
        raise ValueError(f"training.epochs = {settings.epochs:g} are {steps:,} steps; most are {MOST:,}")
    every = settings.eval_every
    if every is None and data.validation is not None:
        every = max(1, math.ceil(epoch))
    return dataclasses.replace(recipe, training=dataclasses.replace(settings, steps=steps, eval_every=every))


def _about_preset(recipe: Recipe, model: Any) -> str:
    """Why a model has another number of parameters than its preset's name says, where that is so."""
    if recipe.kind != TEXT:
        return ""
    counted = PRESETS.get(recipe.model.preset, {}).get("vocab_size")
    has = model.config.vocab_size
    if counted is None or recipe.model.preset == "tiny" or counted == has:
        return ""
    return (
        f" (the name {recipe.model.preset} counts a vocabulary of {counted:,}, and this tokenizer has {has:,} tokens)"
    )


def check_output(output: Path, recipe: Recipe, resume: bool) -> None:
    """Raise ValueError unless `output` is new or empty, or with `resume` the folder of a run of this recipe."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {str(output)!r} is a file; give a folder")
    check_writable(output, "output folder")
    used = output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir())
    if not resume:
        if used:
            kinds = {RESULT: "a finished run", RECIPE: "a run"}
            kind = next((kind for file, kind in kinds.items() if (output / file).exists()), "files")
            more = "add --resume to go on with it, or " if kind == "a run" else ""
            raise ValueError(f"output folder {str(output)!r} already holds {kind}; {more}give another --output")
        return
    if not (output / RECIPE).exists():
        raise ValueError(f"output folder {str(output)!r} holds no run to resume (no {RECIPE}); leave --resume out")
    before = load_recipe(output / RECIPE).sections()
    if before.keys() != recipe.sections().keys():
        raise ValueError(f"the run in {str(output)!r} is of another kind than this recipe; give another --output")
    for section, values in recipe.sections().items():
        for key in sorted(values.keys() | before[section].keys()):
            was, now = before[section].get(key), values.get(key)
            if section == "training" and key in BATCH_KEYS:
                continue
            if was != now and key not in FREE_KEYS.get(section, ()):
                raise ValueError(
                    f"the run in {str(output)!r} was started with {section}.{key} = {was!r}, now it is {now!r}; resume "
                    "with the same value, or start another run (model.pretrained can name this one)"
                )


def _open_folder(output: Path, recipe: Recipe, tokenizer: Any, resume: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    made = recipe.kind == TEXT and bpe_size(recipe.data.tokenizer) is not None
    if made and not (output / TOKENIZER).exists():
        write_whole(output / TOKENIZER, tokenizer.save_pretrained)
    if resume:
        checkpoints.remove_half_written(output / "checkpoints")
    else:
        write_whole(output / RECIPE, recipe.to_toml())
    if not (output / VERSIONS).exists():
        facts = versions() | {"seed": recipe.training.seed, "command": sys.argv, "folder": os.getcwd()}
        write_whole(output / VERSIONS, json.dumps(facts, indent=1) + "\n")


def _draw(output: Path, say: Say, unit: str) -> None:
    """Draw the losses of the run; a run never fails for its picture."""
    try:
        draw_losses(output / METRICS, output / PICTURE, output.name, unit)
    except Exception as error:
        say(f"warning: {output / PICTURE} was not drawn: {error}")


def _save_final(trainer: Any, output: Path, result: dict[str, Any], data: RunData) -> None:
    """Put the model and the tokenizer into the run folder, then result.json."""
    staging = output / ".final"
    try:
        with naming(output):
            trainer.save_model(str(staging))
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if not trainer.is_world_process_zero():
        return
    (staging / "training_args.bin").unlink(missing_ok=True)
    if data.save is not None:
        data.save(staging)
    # a folder with one of these two files counts as a whole model
    last = next(name for name in ("adapter_config.json", "config.json") if (staging / name).exists())
    put_in_place(staging, output, last=last)
    write_whole(output / RESULT, json.dumps(result, indent=1) + "\n")
