"""The squares of a result table, from the names and paths that a command line gives."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from titanslab.data.encode import TokenCounter
from titanslab.data.text import iter_texts, read_words
from titanslab.evaluation.run_task import Cell
from titanslab.files import file_identity
from titanslab.tasks.babilong.background import Background
from titanslab.tasks.babilong.samples import TASKS, BABILong
from titanslab.tasks.niah.samples import NIAH, VARIANTS, score_niah
from titanslab.tasks.sample import TaskSample, parse_length


def split_lengths(text: str, kilo: int) -> list[int]:
    """Lengths in tokens from `2k,4k,1M`, each once."""
    return list(dict.fromkeys(parse_length(part, kilo) for part in _parts(text, "lengths")))


def split_names(text: str, known: Sequence[str], name: str) -> list[str]:
    """Names from `a,b` or, with numbers, `qa1-qa5`, each once; ValueError for one that is not known."""
    names: list[str] = []
    for part in _parts(text, name):
        first, dash, last = part.partition("-")
        if dash and first in known and last in known and known.index(first) <= known.index(last):
            names += known[known.index(first) : known.index(last) + 1]
        elif part in known:
            names.append(part)
        else:
            raise ValueError(f"{name} has {part!r}; it must be one or more of {', '.join(known)}, with commas")
    return list(dict.fromkeys(names))


def niah_cells(
    variants: str,
    lengths: str,
    counter: TokenCounter,
    counter_name: str,
    *,
    haystack: str | None = None,
    adjectives: str | None = None,
    nouns: str | None = None,
    seed: int = 42,
) -> list[Cell]:
    """Cells of S-NIAH.

    Args:
        variants: `single_1` or several with commas.
        lengths: such as `2k,4k`; k is 1024.
        counter: measures the length.
        counter_name: tells one counter from another.
        haystack: path of running text for single_2 and single_3.
        adjectives: path of a word list.
        nouns: path of another.
        seed: of the samples.
    """
    chosen = split_names(variants, VARIANTS, "variant")
    sizes = split_lengths(lengths, 1024)
    lists: dict[str, Any] = {}
    for name, path in (("adjectives", adjectives), ("nouns", nouns)):
        if path is not None:
            lists[name] = read_words(path)
    texts: list[str] | None = None
    if chosen != ["single_1"]:
        if haystack is None:
            raise ValueError(f"haystack is missing; {chosen[-1]} hides its needle in running text: name a file of it")
        texts = list(iter_texts(haystack))
    elif haystack is not None:
        raise ValueError("haystack was given, but single_1 hides its needle in a line of its own; leave it out")
    paths = {"adjectives": adjectives, "nouns": nouns, "haystack": haystack}
    made_of = {name: file_identity(path) for name, path in paths.items() if path is not None}
    cells = []
    for variant in chosen:
        own = None if variant == "single_1" else texts
        task = NIAH(variant, counter, haystack=own, **lists)
        settings = {"seed": seed, "variant": variant, "tokenizer_for_length": counter_name}
        settings |= {name: identity for name, identity in made_of.items() if own or name != "haystack"}
        for length in sizes:
            task.num_units(length)  # a length that is too short shows before the first answer
            make = partial(_make, task, length, seed)
            cells.append(Cell(task.name, length, make, _niah_score, {**settings, "length": length}))
    return cells


def babilong_cells(
    tasks: str,
    lengths: str,
    counter: TokenCounter,
    counter_name: str,
    *,
    facts: str | None,
    background: str | None = None,
    split: str = "test",
    form: str = "base",
    seed: int = 42,
) -> list[Cell]:
    """Cells of BABILong.

    Args:
        tasks: `qa1`, `qa1-qa5`, or several with commas.
        lengths: such as `0k,1k`; k is 1000.
        counter: measures the length.
        counter_name: tells one counter from another.
        facts: folder of bAbI's files; None = stories of our own, qa1 to qa5.
        background: path of books; needed above length 0.
        split: of bAbI.
        form: `base` or `few_shot`.
        seed: of the samples.
    """
    chosen = split_names(tasks, TASKS, "tasks")
    sizes = split_lengths(lengths, 1000)
    if background is None and any(sizes):
        raise ValueError("background is missing; lengths above 0k need books to draw sentences from: name a file")
    cells = []
    makers = {task: BABILong(task, facts, counter, split=split, form=form) for task in chosen}
    if background is not None and any(sizes):
        books = Background(list(iter_texts(background)), counter)
        for maker in makers.values():
            maker.background = books
    told, hidden_in, nothing = file_identity(facts), file_identity(background), file_identity(None)
    for task, maker in makers.items():
        settings = {"seed": seed, "task": task, "split": split, "form": form, "facts": told}
        settings |= {"tokenizer_for_length": counter_name}
        for length in sizes:
            make = partial(_make, maker, length, seed)
            own = {"background": hidden_in if length else nothing, "length": length}
            cells.append(Cell(maker.name, length, make, maker.score, settings | own))
    return cells


def _parts(text: str, name: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{name} is {text!r}; give one or more, with commas")
    return parts


def _make(task: NIAH | BABILong, length: int, seed: int, index: int) -> TaskSample:
    return task.sample(length, index, seed)


def _niah_score(sample: TaskSample, output: str) -> dict[str, float]:
    return {"contained": score_niah(sample.target, output)}
