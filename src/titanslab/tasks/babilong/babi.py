"""Questions of the bAbI tasks, read from their files."""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from titanslab.data.text import whole_text


@dataclass(frozen=True)
class Hint:
    """A training target for the output of one block at one word of a sentence: a step towards the answer.

    Args:
        block: number of the block; 1 = the first.
        target: the word that the block's output should predict.
        word: index of the word in its sentence whose last token carries the target; -1 = the last word.
    """

    block: int
    target: str
    word: int = -1


@dataclass(frozen=True)
class BabiQuestion:
    """A question, all statements of its story before it, and its answer as the file writes it."""

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]  # indices into facts
    hints: tuple[Hint, ...] = ()  # of the question; only generated stories have hints
    earlier: tuple["BabiQuestion", ...] = ()  # questions of the story before this one
    fact_hints: tuple[tuple[Hint, ...], ...] = ()  # of each fact; empty = no fact has hints


def read_babi(path: str | os.PathLike[str]) -> list[BabiQuestion]:
    """The questions of one bAbI file, in its order.

    A line is `number statement` or `number question <tab> answer <tab> numbers of the supporting statements`;
    number 1 begins a new story.
    """
    questions: list[BabiQuestion] = []
    facts: list[str] = []
    earlier: tuple[BabiQuestion, ...] = ()
    place: dict[int, int] = {}
    for row, line in enumerate(whole_text(Path(path), f"path {path}").splitlines(), 1):
        if not line.strip():
            continue
        match = re.match(r"(\d+) (.*)", line)
        if match is None:
            raise ValueError(f"path {path}, line {row} is not a line of bAbI; it must begin with a number")
        number, text = int(match[1]), match[2]
        if number == 1:
            facts, earlier, place = [], (), {}
        if "\t" in text:
            question, answer, *support = text.split("\t")
            known = tuple(place[int(n)] for n in " ".join(support).split() if int(n) in place)
            questions.append(BabiQuestion(tuple(facts), question.strip(), answer.strip(), known, earlier=earlier))
            earlier = (*earlier, questions[-1])
        else:
            place[number] = len(facts)
            facts.append(text.strip())
    if not questions:
        raise ValueError(f"path {path} holds no bAbI question; name a file such as qa1_..._test.txt")
    return questions


@lru_cache(maxsize=32)
def load_babi(folder: str, task: str, split: str = "test") -> list[BabiQuestion]:
    """The questions of a task (`qa1`) and split (`train`, `test`), kept in memory.

    Their file is in or below the folder; of several, the largest is read.
    """
    where = Path(folder)
    if not where.is_dir():
        raise FileNotFoundError(f"facts folder {where} does not exist; name the folder with bAbI's qa*_{split}.txt")
    pattern = f"{task}_*_{split}.txt"
    found = sorted(where.glob(pattern)) or sorted(where.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"facts folder {where} has no {pattern}; name the folder with bAbI's files")
    return read_babi(max(found, key=lambda file: file.stat().st_size))
