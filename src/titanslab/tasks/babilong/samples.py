"""Samples of BABILong: bAbI's facts scattered over books, qa1 to qa10, from no background to ten million tokens.

Source: BABILong (Kuratov et al., 2024); Titans, figure 6 (v1).
"""

import os
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

from titanslab.data.encode import TokenCounter
from titanslab.data.text import iter_texts
from titanslab.files import file_identity
from titanslab.tasks.babilong import TASKS
from titanslab.tasks.babilong.babi import BabiQuestion, load_babi
from titanslab.tasks.babilong.background import Background
from titanslab.tasks.babilong.world import GIVERS, NO_LESSON, PLACES, STORY_FACTS, THINGS, Asked, story
from titanslab.tasks.sample import Cell, TaskSample, derive_seed, split_names

LABELS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TASKS[:4], PLACES),
    "qa5": (*GIVERS, *THINGS),
    "qa6": ("no", "yes"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": (*THINGS, "nothing"),
    "qa9": ("no", "yes"),
    "qa10": ("maybe", "no", "yes"),
}


def score(sample: TaskSample, output: str) -> dict[str, float]:
    """BABILong's metric: the set of the task's labels in the output, without those in the question, is the target.

    Returns:
        `official`: the published metric, under which "none" of qa7 is never right, because it contains "one".
        `corrected`: a label inside a longer label of the output does not count. Both are 0.0 or 1.0.
    """
    text = re.split(r"\.|<context>|<example>", output.lower())[0]
    labels = [label.lower() for label in LABELS[sample.task.removeprefix("babilong_")]]
    asked = {label for label in labels if label in sample.info["question"].lower()}
    wanted = set(sample.target.lower().split(","))  # of qa8 several, written "apple,football"
    official = {label for label in labels if label in text} - asked
    found = set()
    for label in sorted(labels, key=len, reverse=True):
        if label in text:
            found.add(label)
            text = text.replace(label, "\0")
    return {"official": float(official == wanted), "corrected": float(found - asked == wanted)}


def check_form(form: str) -> None:
    """Raise ValueError unless the prompt form is `base`, the only one: the context, a space and the question."""
    if form != "base":
        raise ValueError(f"form is {form!r}; it must be base, the context and the question")


class BABILong:
    """Makes BABILong samples of one task.

    A sample consists of a question and all earlier statements of its story. The statements keep their order and
    stand at sentence boundaries of the background, which are drawn uniformly with replacement.

    Args:
        task: `qa1` to `qa10`.
        facts: folder of bAbI's files; None = generated stories (`world.story`), without end, for qa1 to qa5.
        tokenizer: measures the length of facts and background together; GPT-2's in the benchmark.
        background: books; None where every length is 0.
        split: of bAbI's files, `test` or `train`.
        asked: the questions within generated stories.
    """

    def __init__(
        self,
        task: str,
        facts: str | os.PathLike[str] | None,
        tokenizer: Any,
        *,
        background: Sequence[str] | Background | None = None,
        split: str = "test",
        asked: Asked = NO_LESSON,
    ):
        if task not in LABELS:
            raise ValueError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; it must be train or test")
        self.task, self.name, self.split = task, f"babilong_{task}", split
        self.counter = tokenizer if isinstance(tokenizer, TokenCounter) else TokenCounter(tokenizer)
        if facts is None and task not in STORY_FACTS:
            made = ", ".join(STORY_FACTS)
            raise ValueError(f"facts is None; stories are made for {made} alone, {task} needs bAbI's folder (--facts)")
        for name, share in (("step_questions", asked.step_questions), ("contested", asked.contested)):
            if share and facts is not None:
                raise ValueError(f"{name} is {share!r}; bAbI's files (facts) ask none, so it must be 0")
        self.asked = asked
        self.questions = [] if facts is None else load_babi(os.fspath(facts), task, split)
        if background is not None and not isinstance(background, Background):
            background = Background(background, self.counter)
        self.background = background
        self._order = cache(self._shuffled)

    def samples(self, length: int, num_samples: int, seed: int = 42) -> Iterator[TaskSample]:
        """The first `num_samples` samples of a length, each made when it is needed."""
        return (self.sample(length, index, seed) for index in range(num_samples))

    def sample(self, length: int, index: int, seed: int = 42) -> TaskSample:
        """Sample `index` of a length in tokens; `info` holds the question and the positions of the facts."""
        if self.questions:
            question = self.questions[self._order(seed)[index % len(self.questions)]]
        else:
            question = self.draw(random.Random(derive_seed(self.name, self.split, "story", seed, index)))
        rng = random.Random(derive_seed(self.name, self.split, length, seed, index))
        pieces, places = self.context(question, length, rng)
        prompt = f"{' '.join(pieces)} {question.question}"
        positions = [place - earlier for earlier, place in enumerate(places)]
        total = max(1, len(pieces) - len(places))
        info = {
            "question": question.question,
            "num_facts": len(question.facts),
            "num_sentences": len(pieces) - len(places),
            "fact_positions": positions,
            "supporting": list(question.supporting),
            "depth": 100 * positions[question.supporting[-1] if question.supporting else -1] / total,
        }
        return TaskSample(self.name, length, index, prompt, question.answer, info)

    def draw(self, rng: random.Random, facts: int | None = None) -> BabiQuestion:
        """Draw a question of the task; its `earlier` holds the questions of the story before it.

        A generated story has at most `facts` statements, or more where no question is possible before.
        """
        if self.questions:
            return self.questions[rng.randrange(len(self.questions))]
        longest = STORY_FACTS[self.task] if facts is None else max(2, min(facts, STORY_FACTS[self.task]))
        return story(self.task, round(2 * (longest / 2) ** rng.random()), rng, self.asked)[-1]

    def context(self, question: BabiQuestion, length: int, rng: random.Random) -> tuple[list[str], list[int]]:
        """Facts and background as sentences, `length` tokens in total, and the indices of the facts among them."""
        budget = length - sum(self.counter.count_following(question.facts))
        sentences: list[str] = []
        if length > 0 and budget > 0:
            if self.background is None:
                raise ValueError(f"background is missing; {length} tokens need books to draw from (--background FILE)")
            sentences = self.background.draw(rng, budget)
        positions = sorted(rng.randrange(len(sentences) + 1) for _ in question.facts)
        places = [position + number for number, position in enumerate(positions)]
        for place, fact in zip(places, question.facts, strict=True):
            sentences.insert(place, fact)
        return sentences, places

    def _shuffled(self, seed: int) -> list[int]:
        """A permutation of the questions of bAbI's file."""
        rng = random.Random(derive_seed(self.name, self.split, seed, "order"))
        keys = [rng.random() for _ in self.questions]
        return sorted(range(len(keys)), key=keys.__getitem__)


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
    """Cells of BABILong, one per task and length, where 0 is the facts alone; other arguments as in `table.Task`.

    Args:
        tasks: `qa1`, `qa1-qa5`, or several with commas.
        facts, split: as in `BABILong`.
        background: path of books; needed above length 0.
        form: of the prompt; `base` alone.
    """
    check_form(form)
    chosen = split_names(tasks, TASKS, "tasks")
    if background is None and any(lengths):
        raise ValueError(
            "background is missing; lengths above 0k draw sentences from books: give --background FILE, or --lengths 0k"
        )
    books = Background(list(iter_texts(background)), counter) if background is not None and any(lengths) else None
    makers = {task: BABILong(task, facts, counter, background=books, split=split) for task in chosen}
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
