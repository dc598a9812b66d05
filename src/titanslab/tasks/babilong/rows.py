"""Rows of BABILong to train on: questions within a story, stories alone, and hints."""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from titanslab.data.encode import TokenCounter, encode_answer, leading_special_tokens
from titanslab.tasks.babilong.babi import BabiQuestion, Hint
from titanslab.tasks.babilong.background import Background
from titanslab.tasks.babilong.samples import BABILong, check_form
from titanslab.tasks.babilong.world import GIVERS, MENTIONS, PEOPLE, PLACES, SIDES, SIGNS, Asked
from titanslab.tasks.row import ATTEMPTS, MakeRow, Row, encoder, ending, read_some, scored, too_short

_STORY_ATTEMPTS = 1024  # of qa3's stories few fit a short row
_FACT_TOKENS = 5  # a fact has at least so many words
_CACHED = 1 << 14  # sentences kept encoded


def babilong_rows(
    tokenizer: Any,
    *,
    facts: str | None = None,
    background: str | None = None,
    tasks: str | list[str] = "qa1",
    split: str = "train",
    form: str = "base",
    whole_stories: float = 0.0,
    facts_only: float = 0.0,
    step_questions: float = 0.0,
    steps: Sequence[str] = (),
    contested: float = 0.0,
    hints: bool = False,
    decoys: float = 0.0,
    max_background_chars: int = 50_000_000,
) -> MakeRow:
    """BABILong samples of one or several tasks, drawn evenly.

    Args:
        facts: folder of bAbI's files; without it stories of our own, qa1 to qa5, as many as are asked for.
        background: path of books; without it every sample is facts alone.
        tasks: `qa1` or several.
        split: of bAbI.
        form: of the prompt; `base` alone.
        whole_stories: share of rows in which the story's earlier questions are asked and answered too, each
            between the facts before and after it: more answers to learn from, up to five a row from bAbI's files
            and one for every two facts of our own stories.
        facts_only: share of rows without background: a story of our own as long as the row, asked after every other
            fact, several times the answers of a row with background; of qa4 one map after another.
        step_questions, steps, contested: of stories of our own, see `babi_world.Asked`; step questions are earlier
            questions, so they need `whole_stories` or `facts_only`.
        hints: rows say what the first three blocks should know inside a story of our own, as labels of their outputs.
            Of the first, at a person's name, where they are, at a question about a thing, who had it last, and in qa4,
            where a fact says what is on a side of a place, and where it is asked, a letter for it (`SIDES`). Of the
            second, at the place somebody walks to, a letter for that person at that place (`SIGNS`), at the end of a
            walk, where it began, of a drop, where it was, and of a question, who has the thing or where it lies, or for
            "before" the letter to look up. Of the third, at the place somebody walks to, where they came from the last
            time they came there, and at the end of a question about "before", its answer.
        decoys: share of the background that is sentences in which the books use a word of the stories ("Mary", "went
            to", "garden"): a memory learns not to keep them, though a short row would hold few.
        max_background_chars: no more than this of the books is kept in memory.
    """
    check_form(form)
    if not 0 <= decoys <= 1 or (decoys and not background):
        raise ValueError(f"decoys is {decoys!r}; it must be 0 to 1, and 0 without background")
    if not 0 <= whole_stories <= 1:
        raise ValueError(f"whole_stories is {whole_stories!r}; it must be 0 to 1")
    if not 0 <= facts_only <= 1 or (facts_only and facts):
        raise ValueError(f"facts_only is {facts_only!r}; it must be 0 to 1, and 0 with bAbI's files (facts)")
    if hints and facts:
        raise ValueError("hints is true; it must be false with bAbI's files (facts)")
    asked = Asked(step_questions=step_questions, steps=tuple(steps), contested=contested)
    counter, books = TokenCounter(tokenizer), None
    if background:
        texts = read_some(background, max_background_chars)
        books = Background(texts, counter, decoys=decoys, decoy_words=MENTIONS)
    chosen = [tasks] if isinstance(tasks, str) else list(tasks)
    makers = [BABILong(t, facts, counter, background=books, split=split, asked=asked) for t in chosen]
    if step_questions and not (whole_stories or facts_only):
        raise ValueError(
            f"step_questions is {step_questions!r}; a row without whole_stories or facts_only asks the last question "
            "alone, so set one of the two, or step_questions to 0"
        )
    return _Rows(tokenizer, makers, whole_stories, facts_only, hints).make


class _Rows:
    """What `babilong_rows` makes, from settings it has checked."""

    def __init__(self, tokenizer: Any, makers: list[BABILong], whole_stories: float, facts_only: float, hints: bool):
        self.makers, self.whole_stories, self.facts_only, self.hints = makers, whole_stories, facts_only, hints
        self.prefix = leading_special_tokens(tokenizer)
        self.encode: Callable[[str], list[int]] = encoder(tokenizer)
        end = ending(tokenizer)
        # facts, questions and answers come again and again
        self.encode_known = lru_cache(_CACHED)(self.encode)
        self.tokens = lru_cache(_CACHED)(lambda fact: makers[0].counter.count_following([fact])[0])
        self._reply = lru_cache(_CACHED)(lambda asked, reply: encode_answer(tokenizer, asked, reply) + end)
        if hints:
            _check_hints(self.encode)

    def make(self, length: int, seed: int) -> Row:
        rng = random.Random(seed)
        task = self.makers[rng.randrange(len(self.makers))]
        if self.facts_only and rng.random() < self.facts_only:
            return self._story_alone(task, length, rng)
        for _ in range(_STORY_ATTEMPTS):
            question = task.draw(rng, length // _FACT_TOKENS)
            told = sum(map(self.tokens, question.facts))
            if told > length:
                continue  # a story longer than the row: draw another
            whole = self.whole_stories > 0 and rng.random() < self.whole_stories
            row = self._write(task, question, 0, whole, rng)
            if len(row.ids) > length:
                continue  # with what it asks it is longer
            size = told + length - len(row.ids)
            state = rng.getstate()
            for _ in range(ATTEMPTS if task.background else 0):
                rng.setstate(state)
                longer = self._write(task, question, size, whole, rng)
                if len(longer.ids) <= length:
                    return longer
                size -= len(longer.ids) - length
            return row
        raise too_short(length, task.name)

    def _story_alone(self, task: BABILong, length: int, rng: random.Random) -> Row:
        room = length - len(self.prefix)
        for _ in range(_STORY_ATTEMPTS):
            told = size = 0
            fitting: list[BabiQuestion] = []
            for one in task.story(max(2, length // _FACT_TOKENS), rng):
                size += sum(map(self.tokens, one.facts[told:])) + self.tokens(one.question) + len(self._answer(one))
                if size > room:
                    break
                fitting.append(one)
                told = len(one.facts)
            for one in reversed(fitting):
                row = self._write(task, one, 0, True, rng)
                if len(row.ids) <= length:
                    return row
        raise too_short(length, task.name)

    def _write(self, task: BABILong, question: BabiQuestion, size: int, whole: bool, rng: random.Random) -> Row:
        """The row of a question, `size` tokens of facts and background, `whole` with the questions before it."""
        if not whole and not self.hints:
            prompt = self.encode(task.build(question, size, 0, rng).prompt)
            return scored(self.prefix + prompt, self._answer(question))
        pieces, places = task.context(question, size, rng)
        facts = dict(zip(places, question.fact_hints, strict=False))  # bAbI's files have none
        ids, labels, done = list(self.prefix), [-100] * len(self.prefix), 0
        marks: list[tuple[int, int, int]] = []
        earlier = question.earlier if whole else ()
        ends = [_between(rng, pieces, places, len(one.facts)) for one in earlier]
        for one, end in zip((*earlier, question), (*sorted(ends), len(pieces)), strict=True):
            said = [(piece, facts.get(at, ())) for at, piece in enumerate(pieces[done:end], done)]
            said.append((one.question, one.hints))
            if not self.hints:
                said = [(" ".join(piece for piece, _ in said), ())]
            for piece, told in said:
                space = " " if labels[len(self.prefix) :] else ""
                marks += [(len(ids) + at, block, says) for at, block, says in self._mark(space, piece, told)]
                new = self.encode(space + piece)
                ids, labels = ids + new, labels + [-100] * len(new)
            answer = self._answer(one)
            ids, labels, done = ids + answer, labels + answer, end
        return Row(ids, labels, marks)

    def _mark(self, space: str, piece: str, told: Sequence[Hint]) -> list[tuple[int, int, int]]:
        """The hints of a sentence: last token of the word, block, and the id of what it says."""
        marks = []
        for hint in told:
            words = piece if hint.word < 0 else " ".join(piece.split(" ")[: hint.word + 1]).rstrip(".?")
            at = len(self.encode_known(space + words)) - 1
            marks.append((at, hint.block - 1, _hint_id(self.encode_known, hint.says)))
        return marks

    def _answer(self, question: BabiQuestion) -> list[int]:
        return self._reply(question.question, question.answer)


def _between(rng: random.Random, pieces: list[str], places: list[int], facts: int) -> int:
    """A place in `pieces` to ask at after so many facts, and before the next."""
    low = places[facts - 1] + 1 if facts else 0
    return rng.randint(low, places[facts] if facts < len(places) else len(pieces))


def _hint_id(encode: Callable[[str], list[int]], word: str) -> int:
    """The token that stands for what a hint says: a word's first, a letter's last (the first may be the space)."""
    return encode(f" {word}")[-1 if len(word) == 1 else 0]


def _check_hints(encode: Callable[[str], list[int]]) -> None:
    """Raise ValueError unless every word that a hint may say has a token of its own."""
    words = sorted({*PLACES, *PEOPLE, *GIVERS, *SIGNS.values(), *SIDES.values()})
    if len({_hint_id(encode, word) for word in words}) < len(words):
        raise ValueError(
            f"hints is true; it needs a tokenizer whose first token tells {', '.join(words)} apart, so not bytes"
        )
