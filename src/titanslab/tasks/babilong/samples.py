"""BABILong: bAbI's facts scattered over books, qa1 to qa10, from facts alone to ten million tokens.

Source: BABILong (Kuratov et al., 2024); Titans, figure 6 (v1).
"""

import os
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from titanslab.data.encode import TokenCounter
from titanslab.tasks.babilong.babi import BabiQuestion, load_babi
from titanslab.tasks.babilong.background import Background
from titanslab.tasks.babilong.world import NO_LESSON, STORY_FACTS, Asked, story
from titanslab.tasks.sample import TaskSample, derive_seed

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
LABELS: dict[str, tuple[str, ...]] = {
    "qa1": _PLACES,
    "qa2": _PLACES,
    "qa3": _PLACES,
    "qa4": _PLACES,
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    "qa6": ("no", "yes"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa9": ("no", "yes"),
    "qa10": ("maybe", "no", "yes"),
}
TASKS = tuple(LABELS)


def score_babilong(task: str, target: str, output: str, question: str) -> dict[str, float]:
    """BABILong's metric: the task's labels in the output, less those in the question, are just the target's.

    Returns:
        `official`, as published, in which qa7's "none" can never score because it holds "one"; and
        `corrected`, where a label inside a longer label that was found does not count. Both 0.0 or 1.0.
    """
    if task not in LABELS:
        raise ValueError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    text = re.split(r"\.|<context>|<example>", output.lower())[0]
    labels = [label.lower() for label in LABELS[task]]
    asked = {label for label in labels if label in question.lower()}
    # Several answers only in qa8, written "apple,football".
    wanted = set(target.lower().split(",")) if "," in target else {target.lower()}
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

    A sample is all earlier statements of a story and one question on them. The statements keep their order
    and stand at sentence boundaries drawn uniformly, with replacement, in background text.

    Args:
        task: `qa1` to `qa10`.
        facts: folder of bAbI's files; None = stories of our own (`babi_world`), without end, qa1 to qa5 only.
        tokenizer: what measures the length of facts and background together; GPT-2's in the benchmark.
        background: books; may be missing where only the length 0 is asked for.
        split: `test` or `train` of bAbI.
        min_sentence_tokens: shorter background sentences are left out.
        asked: what stories of our own ask.
    """

    def __init__(
        self,
        task: str,
        facts: str | os.PathLike[str] | None,
        tokenizer: Any,
        *,
        background: Sequence[str] | Background | None = None,
        split: str = "test",
        min_sentence_tokens: int = 10,
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
            background = Background(background, self.counter, min_sentence_tokens)
        self.background = background
        self._orders: dict[int, list[int]] = {}

    def sample(self, length: int, index: int, seed: int = 42) -> TaskSample:
        """Sample `index` of a length in tokens; `info` has the question, and where the facts stand."""
        if self.questions:
            question = self.questions[self._order(seed)[index % len(self.questions)]]
        else:
            question = self.draw(random.Random(derive_seed(self.name, self.split, "story", seed, index)))
        rng = random.Random(derive_seed(self.name, self.split, length, seed, index))
        return self.build(question, length, index, rng)

    def draw(self, rng: random.Random, facts: int | None = None) -> BabiQuestion:
        """Any question of the task; with `earlier`, those its story asked before.

        A story of our own is told in at most `facts` statements, or as many as it takes until something can be asked.
        """
        if self.questions:
            return self.questions[rng.randrange(len(self.questions))]
        longest = STORY_FACTS[self.task] if facts is None else max(2, min(facts, STORY_FACTS[self.task]))
        return self.story(round(2 * (longest / 2) ** rng.random()), rng)[-1]

    def story(self, facts: int, rng: random.Random) -> list[BabiQuestion]:
        """A new story of our own of at least so many facts, see `babi_world.story`."""
        return story(self.task, facts, rng, self.asked)

    def build(self, question: BabiQuestion, length: int, index: int, rng: random.Random) -> TaskSample:
        """The sample of a question: its facts and background drawn with `rng`, `length` tokens together."""
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

    def context(self, question: BabiQuestion, length: int, rng: random.Random) -> tuple[list[str], list[int]]:
        """Facts and background as sentences, `length` tokens together, and where in them the facts are."""
        budget = length - sum(self.counter.count_following(question.facts))
        sentences: list[str] = []
        if length > 0 and budget > 0:
            if self.background is None:
                raise ValueError(f"background is missing; a length of {length} tokens needs books to draw from")
            sentences = self.background.draw(rng, budget)
        positions = sorted(rng.randrange(len(sentences) + 1) for _ in question.facts)
        pieces: list[str] = []
        places: list[int] = []
        start = 0
        for fact, position in zip(question.facts, positions, strict=True):
            pieces += sentences[start:position]
            places.append(len(pieces))
            pieces.append(fact)
            start = position
        return pieces + sentences[start:], places

    def samples(self, length: int, num_samples: int, seed: int = 42) -> Iterator[TaskSample]:
        """The first `num_samples` samples of a length, one by one."""
        for index in range(num_samples):
            yield self.sample(length, index, seed)

    def score(self, sample: TaskSample, output: str) -> dict[str, float]:
        """`score_babilong` of one sample."""
        return score_babilong(self.task, sample.target, output, sample.info["question"])

    def _order(self, seed: int) -> list[int]:
        if seed not in self._orders:
            rng = random.Random(derive_seed(self.name, self.split, seed, "order"))
            keys = [rng.random() for _ in self.questions]
            self._orders[seed] = sorted(range(len(keys)), key=keys.__getitem__)
        return self._orders[seed]
