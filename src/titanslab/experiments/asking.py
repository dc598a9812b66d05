"""The questions of a study as cells of `titanslab.evaluation`; the other modules of this room know no task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from titanslab.experiments.study import Ask

KILO = {"niah": 1024, "babilong": 1000}


class Round(NamedTuple):
    """One pass over samples of a trained model.

    Args:
        folder: name of the folder that holds the answers.
        lengths: such as `2k,4k`.
        samples: per name and length.
        learn: whether the memories write.
    """

    folder: str
    lengths: str
    samples: int
    learn: bool


def kilo(task: str) -> int:
    """The number of tokens that `k` stands for in the lengths of a task."""
    if task not in KILO:
        raise ValueError(f"ask.task is {task!r}; it must be one of {', '.join(KILO)}")
    return KILO[task]


def names_of(ask: Ask) -> list[str]:
    """Names of the variants or sub-tasks."""
    return _names(ask.task, ask.names, "ask.names")


def average_of(ask: Ask) -> list[str]:
    """The names of the cells whose mean is a line of the table."""
    return [f"{ask.task}_{name}" for name in _names(ask.task, ask.average, "ask.average")] if ask.average else []


def lengths_of(ask: Ask, lengths: str) -> list[int]:
    """Lengths in tokens."""
    from titanslab.evaluation.cells import split_lengths

    return split_lengths(lengths, kilo(ask.task)) if lengths else []


def rounds(ask: Ask, stage: str, memory: bool, far: bool) -> list[Round]:
    """The rounds that the model of a stage is asked: near, far, and with frozen memories where it has a memory."""
    if not ask.task:
        return []
    frozen = ask.lengths if ask.frozen is None else ask.frozen
    frozen_samples = ask.samples if ask.frozen_samples is None else ask.frozen_samples
    found = [Round(f"evaluation-{stage}", ask.lengths, ask.samples, True)]
    if far:
        found.append(Round(f"evaluation-{stage}", ask.far, ask.far_samples, True))
    if memory:
        found.append(Round(f"evaluation-{stage}-frozen", frozen, frozen_samples, False))
    return [part for part in found if part.lengths]


def check(ask: Ask) -> None:
    """Raise ValueError for names and lengths that the task does not have, before anything is trained."""
    if ask.task:
        names_of(ask)
        average_of(ask)
        for name in ("lengths", "far", "frozen"):
            try:
                lengths_of(ask, getattr(ask, name) or "")
            except ValueError as error:
                raise ValueError(f"ask.{name}: {error}") from error


def answer(ask: Ask, part: Round, run: Path, folder: Path, samples_folder: Path, device: str) -> None:
    """Answer the samples of a round with the model of `run`, as `titans evaluate` does; finished answers are kept."""
    from titanslab.evaluation.run_model import TaskRun, run_model
    from titanslab.runs.devices import pick_device

    task = TaskRun(
        model=str(run),
        output=folder / part.folder,
        samples=part.samples,
        seed=ask.seed,
        max_new_tokens=ask.max_new_tokens,
        batch_size=ask.batch_size,
        batch_tokens=ask.batch_tokens,
        piece=ask.piece,
        device=pick_device(device),
        tokenizer_for_length=ask.tokenizer_for_length,
        sample_cache=samples_folder,
        learn=part.learn,
    )
    run_model(task, lambda counter, name: _cells(ask, part.lengths, counter, name), {"task": ask.task})


def _names(task: str, names: str, argument: str) -> list[str]:
    from titanslab.evaluation.cells import split_names
    from titanslab.tasks.babilong.samples import TASKS
    from titanslab.tasks.niah.samples import VARIANTS

    kilo(task)
    return split_names(names, VARIANTS if task == "niah" else TASKS, argument)


def _cells(ask: Ask, lengths: str, counter: Any, counter_name: str) -> list[Any]:
    from titanslab.evaluation.cells import babilong_cells, niah_cells

    make: Callable[..., list[Any]] = niah_cells if ask.task == "niah" else babilong_cells
    options = dict(ask.options)
    if ask.names == "single_1":  # hides its needle in a line of its own
        options.pop("haystack", None)
    return make(ask.names, lengths, counter, counter_name, seed=ask.seed, **options)
