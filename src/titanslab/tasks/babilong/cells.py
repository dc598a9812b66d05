"""The result table of BABILong: its cells and its scores."""

from collections.abc import Sequence
from functools import partial

from titanslab.data.encode import TokenCounter
from titanslab.data.text import iter_texts
from titanslab.files import file_identity
from titanslab.tasks.babilong import TASKS
from titanslab.tasks.babilong.background import Background
from titanslab.tasks.babilong.samples import BABILong, check_form, score_babilong
from titanslab.tasks.sample import Cell, TaskSample, split_names


def babilong_cells(
    tasks: str,
    lengths: Sequence[int],
    counter: TokenCounter,
    counter_name: str,
    *,
    facts: str | None,
    background: str | None = None,
    split: str = "test",
    form: str = "base",
    seed: int = 42,
) -> list[Cell]:
    """Cells of BABILong, one per task and length.

    Args:
        tasks: `qa1`, `qa1-qa5`, or several with commas.
        lengths: in tokens; 0 = the facts alone.
        counter: measures the length.
        counter_name: identity of the counter's tokenizer, part of the cells' settings.
        facts: folder of bAbI's files; None = generated stories, for qa1 to qa5.
        background: path of books; needed above length 0.
        split: of bAbI's files, `test` or `train`.
        form: of the prompt; `base` alone.
        seed: of the samples.
    """
    check_form(form)
    chosen = split_names(tasks, TASKS, "tasks")
    if background is None and any(lengths):
        raise ValueError("background is missing; lengths above 0k need books to draw sentences from: name a file")
    makers = {task: BABILong(task, facts, counter, split=split) for task in chosen}
    if background is not None and any(lengths):
        books = Background(list(iter_texts(background)), counter)
        for maker in makers.values():
            maker.background = books
    stories, hidden_in, nothing = file_identity(facts), file_identity(background), file_identity(None)
    cells = []
    for task, maker in makers.items():
        # `form` stays in the settings: result folders and sample files of earlier releases hold it.
        settings = {"seed": seed, "task": task, "split": split, "form": form, "facts": stories}
        settings |= {"tokenizer_for_length": counter_name}
        for length in lengths:
            own = {"background": hidden_in if length else nothing, "length": length}
            cells.append(Cell(maker.name, length, partial(maker.sample, length, seed=seed), score, settings | own))
    return cells


def score(sample: TaskSample, output: str) -> dict[str, float]:
    """`score_babilong` of a sample."""
    task = sample.task.removeprefix("babilong_")
    return score_babilong(task, sample.target, output, sample.info["question"])
