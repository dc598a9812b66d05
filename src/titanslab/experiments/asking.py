"""The questions of a study, through the table of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from titanslab.experiments.sections import Ask
    from titanslab.tasks.table import Task


class Round(NamedTuple):
    """One pass of a trained model over samples.

    Args:
        folder: name of the folder for the answers.
        lengths: lengths of the samples, such as `2k,4k`.
        samples: number of samples per name and length.
        learn: whether the memories write.
    """

    folder: str
    lengths: str
    samples: int
    learn: bool


def task_of(ask: Ask) -> Task:
    """The task's row of the table of tasks. Raises ValueError for an unknown task and for one without questions."""
    from titanslab.tasks.table import TASKS

    known = [name for name, task in TASKS.items() if task.cells is not None]
    if ask.task not in known:
        raise ValueError(f"ask.task is {ask.task!r}; it must be one of {', '.join(known)}")
    return TASKS[ask.task]


def names_of(ask: Ask) -> list[str]:
    """Names of the variants or sub-tasks of the questions."""
    from titanslab.tasks.sample import split_names

    return split_names(ask.names, task_of(ask).parts, "ask.names")


def lengths_of(ask: Ask, lengths: str) -> list[int]:
    """The lengths as numbers of tokens."""
    from titanslab.tasks.sample import split_lengths

    return split_lengths(lengths, task_of(ask).kilo) if lengths else []


def average_of(ask: Ask) -> tuple[str, list[str]]:
    """Label of the average that the table shows, and the names of its cells; both empty if the task has no average."""
    average = task_of(ask).average if ask.task else ()
    return f"{average[0]}-{average[-1]}" if average else "", [f"{ask.task}_{name}" for name in average]


def options_of(ask: Ask) -> dict[str, Any]:
    """The options of the task itself, without those that no chosen name reads."""
    task, names = task_of(ask), set(names_of(ask))
    unread = {option.name for option in task.options if option.parts and not names & set(option.parts)}
    return {name: value for name, value in ask.options.items() if name not in unread} | {task.parts_option: ask.names}


def rounds(ask: Ask, stage: str, memory: bool, far: bool) -> list[Round]:
    """The rounds for the model of a stage: near lengths, far lengths, and frozen memories if it has a memory."""
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
    """Raise ValueError for names, lengths and options that the task does not have. Called before training."""
    if not ask.task:
        return
    names_of(ask)
    for name in ("lengths", "far", "frozen"):
        try:
            lengths_of(ask, getattr(ask, name) or "")
        except ValueError as error:
            raise ValueError(f"ask.{name}: {error}") from error
    known = [option.name for option in task_of(ask).options]
    for name in ask.options:
        if name not in known:
            raise ValueError(
                f"ask.options has {name!r}, which is not an option of {ask.task}; it has {', '.join(known)}"
            )


def answer(ask: Ask, part: Round, run: Path, folder: Path, samples_folder: Path, device: str) -> None:
    """Answer the samples of a round with the model of `run`, as `titans evaluate` does. Finished answers are kept."""
    from titanslab.evaluation.run_task import TaskRun, run_task
    from titanslab.runs.loading import pick_device

    run_task(
        TaskRun(
            task=task_of(ask),
            lengths=part.lengths,
            samples=part.samples,
            model=str(run),
            output=folder / part.folder,
            device=pick_device(device),
            max_new_tokens=ask.max_new_tokens,
            seed=ask.seed,
            options=options_of(ask),
            tokenizer_for_length=ask.tokenizer_for_length,
            sample_folder=samples_folder,
            batch_size=ask.batch_size,
            batch_tokens=ask.batch_tokens,
            piece=ask.piece,
            learn=part.learn,
        )
    )
