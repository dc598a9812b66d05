"""Training rows of BABILong: questions within a story, stories without background, and hints."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from titanslab.data.encode import TextEncoder, TokenCounter, encode_answer, leading_special_tokens
from titanslab.tasks.babilong.babi import BabiQuestion, Hint
from titanslab.tasks.babilong.background import Background
from titanslab.tasks.babilong.samples import BABILong, check_form
from titanslab.tasks.babilong.world import GIVERS, HINTED_BLOCKS, MENTIONS, PEOPLE, PLACES, SIDES, SIGNS, Asked, story
from titanslab.tasks.row import Row, ending, fit, read_some, too_short

_STORY_ATTEMPTS = 1024  # drawn stories before a row counts as too short; few stories of qa3 fit a short row
_FACT_TOKENS = 5  # lower bound on the tokens of a fact, which has at least five words
_CACHED = 1 << 14  # sentences whose tokens are cached


@dataclass(eq=False)
class BabilongRows:
    """Makes training rows of BABILong, a `MakeRow`; all but the tokenizer are `data.task_options` in a recipe.

    Args:
        tokenizer, facts: encodes to ids; folder of bAbI's files, None = generated stories, without end, for qa1 to qa5.
        background: path of books, at most `MAX_CHARS` of them; None = every sample is its facts alone.
        tasks: one task such as `qa1`, or a list of them, drawn evenly.
        split, form: `train` or `test` of bAbI's files; of the prompt, `base` alone.
        whole_stories: share of rows that hold the earlier questions of the story too, each with its answer at a place
            between the facts before and after it. Such a row has up to five answers to learn from with bAbI's files,
            and one for every two facts of a generated story.
        facts_only: share of rows without background: a generated story as long as the row, with a question after
            every second fact, several times the answers of a row with background. A row of qa4 holds one map after
            another.
        step_questions, steps, contested: see `world.Asked`; `step_questions` needs `whole_stories` or `facts_only`.
        hints: give the outputs of the first three blocks labels within generated stories. Block 1 predicts, at a
            person's name, the person's place; at a question about a thing, the person who had it last; in qa4, at a
            fact and at the question, the letter of a side of a place (`SIDES`). Block 2 predicts, at the place of a
            walk, the letter of this person at this place (`SIGNS`); at the end of a walk, its start; at the end of a
            drop, its place; at a question, the holder or the place of the thing, or the letter to look up for
            "before". Block 3 predicts, at the place of a walk, the place from which the person came there the last
            time; at a question about "before", its answer.
        decoys: share of the background that goes to sentences with a word of the stories ("Mary", "went to",
            "garden"). A short row then holds as many of them as a long text, and the memory learns not to store them.
    """

    tokenizer: Any
    facts: str | None = None
    background: str | None = None
    tasks: str | list[str] = "qa1"
    split: str = "train"
    form: str = "base"
    whole_stories: float = 0.0
    facts_only: float = 0.0
    step_questions: float = 0.0
    steps: Sequence[str] = ()
    contested: float = 0.0
    hints: bool = False
    decoys: float = 0.0

    def __post_init__(self) -> None:
        check_form(self.form)
        if not 0 <= self.decoys <= 1 or (self.decoys and not self.background):
            raise ValueError(f"decoys is {self.decoys!r}; it must be 0 to 1, and 0 without background")
        if not 0 <= self.whole_stories <= 1:
            raise ValueError(f"whole_stories is {self.whole_stories!r}; it must be 0 to 1")
        if not 0 <= self.facts_only <= 1 or (self.facts_only and self.facts):
            raise ValueError(f"facts_only is {self.facts_only!r}; it must be 0 to 1, and 0 with bAbI's files (facts)")
        if self.hints and self.facts:
            raise ValueError("hints is true; it must be false with bAbI's files (facts)")
        asked = Asked(step_questions=self.step_questions, steps=tuple(self.steps), contested=self.contested)
        tokenizer, counter, books = self.tokenizer, TokenCounter(self.tokenizer), None
        if self.background:
            books = Background(read_some(self.background), counter, decoys=self.decoys, decoy_words=MENTIONS)
        self.makers = [
            BABILong(task, self.facts, counter, background=books, split=self.split, asked=asked)
            for task in ([self.tasks] if isinstance(self.tasks, str) else self.tasks)
        ]
        if self.step_questions and not (self.whole_stories or self.facts_only):
            raise ValueError(
                f"step_questions is {self.step_questions!r}; a row without whole_stories or facts_only asks the last "
                "question alone, so set one of the two, or step_questions to 0"
            )
        self.prefix = leading_special_tokens(tokenizer)
        self.encode, end = TextEncoder(tokenizer).ids, ending(tokenizer)
        self.encode_cached = lru_cache(_CACHED)(self.encode)
        self.tokens = lru_cache(_CACHED)(lambda fact: counter.count_following([fact])[0])
        self._reply = lru_cache(_CACHED)(lambda question, answer: encode_answer(tokenizer, question, answer) + end)
        words = sorted({*PLACES, *PEOPLE, *GIVERS, *SIGNS.values(), *SIDES.values()})
        if self.hints and len({self._hint_id(word) for word in words}) < len(words):
            raise ValueError(
                f"hints is true; it needs a tokenizer whose first token tells {', '.join(words)} apart, so not bytes"
            )

    def __call__(self, length: int, seed: int) -> Row:
        """A row of at most `length` tokens, a pure function of the seed."""
        rng = random.Random(seed)
        task = self.makers[rng.randrange(len(self.makers))]
        if self.facts_only and rng.random() < self.facts_only:
            return self._story_alone(task, length, rng)
        for _ in range(_STORY_ATTEMPTS):
            question = task.draw(rng, length // _FACT_TOKENS)
            size_of_facts = sum(map(self.tokens, question.facts))
            if size_of_facts > length:
                continue  # the story is longer than the row
            whole = self.whole_stories > 0 and rng.random() < self.whole_stories
            row = self._write(task, question, whole, rng, 0)
            if len(row.ids) > length:
                continue  # with its questions the story is longer than the row
            if task.background is None:
                return row
            write = partial(self._write, task, question, whole, rng)
            return fit(write, size_of_facts + length - len(row.ids), length, rng) or row
        raise too_short(length, task.name)

    def _story_alone(self, task: BABILong, length: int, rng: random.Random) -> Row:
        """A row without background: a generated story up to the last question that fits, with all its answers."""
        room = length - len(self.prefix)
        for _ in range(_STORY_ATTEMPTS):
            known = size = 0
            fitting: list[BabiQuestion] = []
            for one in story(task.task, max(2, length // _FACT_TOKENS), rng, task.asked):
                size += sum(map(self.tokens, [*one.facts[known:], one.question]))
                size += len(self._reply(one.question, one.answer))
                if size > room:
                    break
                fitting.append(one)
                known = len(one.facts)
            for one in reversed(fitting):
                row = self._write(task, one, True, rng, 0)
                if len(row.ids) <= length:
                    return row
        raise too_short(length, task.name)

    def _write(self, task: BABILong, question: BabiQuestion, whole: bool, rng: random.Random, size: int) -> Row:
        """The row of a question with `size` tokens of facts and background; `whole` adds the questions before it."""
        pieces, places = task.context(question, size, rng)
        facts = dict(zip(places, question.fact_hints, strict=False))  # empty for bAbI's files
        ids, labels, done = list(self.prefix), [-100] * len(self.prefix), 0
        marks: list[tuple[int, int, int]] = []
        earlier = question.earlier if whole else ()
        ends: list[int] = []
        for known in (len(one.facts) for one in earlier):  # a question stands after its facts and before the next one
            low = places[known - 1] + 1 if known else 0
            ends.append(rng.randint(low, places[known] if known < len(places) else len(pieces)))
        for one, end in zip((*earlier, question), (*sorted(ends), len(pieces)), strict=True):
            sentences = [(piece, facts.get(at, ())) for at, piece in enumerate(pieces[done:end], done)]
            sentences.append((one.question, one.hints))
            if not self.hints:
                sentences = [(" ".join(piece for piece, _ in sentences), ())]
            for piece, hints in sentences:
                space = " " if labels[len(self.prefix) :] else ""
                marks += [(len(ids) + at, block, label) for at, block, label in self._mark(space, piece, hints)]
                new = self.encode(space + piece)
                ids, labels = ids + new, labels + [-100] * len(new)
            answer = self._reply(one.question, one.answer)
            ids, labels, done = ids + answer, labels + answer, end
        return Row(ids, labels, marks, HINTED_BLOCKS if self.hints else 0)

    def _mark(self, space: str, piece: str, hints: Sequence[Hint]) -> list[tuple[int, int, int]]:
        """The hints of a sentence as (index of the word's last token, block, id of the target), counted from 0."""
        marks = []
        for hint in hints:
            words = piece if hint.word < 0 else " ".join(piece.split(" ")[: hint.word + 1]).rstrip(".?")
            at = len(self.encode_cached(space + words)) - 1
            marks.append((at, hint.block - 1, self._hint_id(hint.target)))
        return marks

    def _hint_id(self, word: str) -> int:
        """The token of a hint's target: the first token of a word, the last of a letter, after that of the space."""
        return self.encode_cached(f" {word}")[-1 if len(word) == 1 else 0]
