"""The checkpoint from which a run goes on: the newest whole one, with its files checked before one is used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from titanslab.models.config import TitansConfig
from titanslab.runs import checkpoints
from titanslab.runs.loading import read_config
from titanslab.runs.weights import SINGLE, difference, weight_files
from titanslab.training.recipe import Recipe
from titanslab.training.state_files import check_states, load_batch

Say = Callable[[str], None]


def checkpoint_to_resume(output: Path, trainer: Any, say: Say) -> Path | None:
    """The newest whole checkpoint of the run in `output`; None where it has none yet.

    Args:
        output: the run folder. trainer: the `TitansTrainer` that goes on with it.
        say: called with the name of each damaged checkpoint and its fault, and with the checkpoint that was taken.

    Raises:
        ValueError: there are checkpoints and none is whole.
    """
    folder, faults = output / "checkpoints", list[str]()
    for path in reversed(checkpoints.all_checkpoints(folder)):
        fault = checkpoints.problem(path) or (trainer.fault_inside(path) if trainer.own_state else "")
        if not fault:
            known = checkpoints.has_checksums(path)
            say(f"resuming from {path.name}" + ("" if known else ", which was written without checksums"))
            return path
        faults.append(f"{path.name}: {fault}")
        say(f"warning: {path.name} is damaged and left aside: {fault}")
    if faults:
        raise ValueError(
            f"no checkpoint in {str(folder)!r} is whole ({faults[0]}); copy them again from where they were saved, or "
            "delete that folder to start the run from its first step"
        )
    say("no checkpoint yet: starting from the first step")
    return None


def check_rows(checkpoint: Path, recipe: Recipe, before: Recipe, processes: int) -> None:
    """ValueError unless a step has as many rows as in the run so far: other batches would be another run.

    Args:
        recipe, before: the recipe now, and that in the run folder. processes: their number now.
    """
    saved = load_batch(checkpoint)
    then = saved.processes if saved else max(1, len(list(checkpoint.glob("random_state_*.json"))))
    rows, now = saved.rows if saved else before.training.rows(then), recipe.training.rows(processes)
    if rows != now:
        raise ValueError(
            f"the run reads {rows} rows a step, by {_processes(then)}, and now it would read {now}, by "
            f"{_processes(processes)}; set training.global_batch_size = {rows}, which shares them among any number"
        )


def _processes(count: int) -> str:
    return f"{count} process" + ("" if count == 1 else "es")


def fault_inside(checkpoint: Path, model: Any) -> str:
    """Why the files of a checkpoint cannot be those of this model and of its optimiser, in words; "" if they can."""

    def check() -> None:
        read_config(checkpoint / "config.json")
        check_weights(checkpoint, model)

    return first_fault(checkpoint, check)


def first_fault(checkpoint: Path, check: Callable[[], object]) -> str:
    """`fault_inside`, where `check` raises ValueError or OSError for weights that are not those of the model."""
    try:
        check()
        check_states(checkpoint)
    except (ValueError, OSError) as error:
        return str(error).partition("; ")[0]
    return ""


def check_weights(checkpoint: Path, model: Any) -> None:
    """Raise ValueError unless a checkpoint has the weights of the model as safetensors, which nothing unpickles."""
    files = weight_files(checkpoint)
    if files[0].name != SINGLE and any(checkpoint.glob("pytorch_model*")):
        raise ValueError(f"{str(checkpoint)!r} holds a pickled model, which is not read; delete it")
    own = isinstance(model.config, TitansConfig)
    if other := difference(files, model.state_dict(), names_too=own):
        raise ValueError(f"{other}; delete {str(checkpoint)!r} to resume from the checkpoint before")
