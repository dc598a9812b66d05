"""How a row of each task is made: `(length, seed) -> Row`, at most `length` tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from titanslab.tasks.sources import iter_texts, read_words
from titanslab.tasks.tokens import TokenCounter, encode_answer, encoder_of, leading_special_tokens

if TYPE_CHECKING:
    from titanslab.tasks.babi import BabiQuestion, Hint
    from titanslab.tasks.babilong import BABILong


class Row(NamedTuple):
    """Tokens, their labels, and what a block's output should say: `(token, block, id)`, both counted from 0."""

    ids: list[int]
    labels: list[int]
    hints: Sequence[tuple[int, int, int]] = ()


MakeRow = Callable[[int, int], Row]
_ATTEMPTS = 64
_STORY_ATTEMPTS = 1024  # of qa3's stories few fit a short row
_FACT_TOKENS = 5  # a fact has at least so many words


def niah_rows(
    tokenizer: Any,
    *,
    variant: str | list[str] = "single_1",
    haystack: str | None = None,
    adjectives: str | None = None,
    nouns: str | None = None,
    decoys: float = 0.0,
    max_haystack_chars: int = 50_000_000,
) -> MakeRow:
    """S-NIAH samples; haystacks begin at a random word, so that no single text is learned by heart.

    Args:
        variant: one of `single_1`, `single_2`, `single_3`, or several, drawn evenly.
        haystack: path of running text for single_2 and single_3.
        adjectives: path of a word list for the keys.
        nouns: path of the other.
        decoys: stray numbers and hexadecimal words per 1,000 tokens of running text, at random places: what a long
            haystack holds of them comes with a short row, and a memory learns not to keep them.
        max_haystack_chars: no more than this of the haystack is kept in memory.
    """
    from titanslab.tasks.niah import NIAH

    counter, prefix = TokenCounter(tokenizer), leading_special_tokens(tokenizer)
    variants = [variant] if isinstance(variant, str) else list(variant)
    if not 0 <= decoys <= 100:
        raise ValueError(f"decoys is {decoys!r}; it must be 0 to 100 per 1,000 tokens")
    lists: dict[str, Any] = {}
    if adjectives:
        lists["adjectives"] = read_words(adjectives)
    if nouns:
        lists["nouns"] = read_words(nouns)
    if haystack is None and variants != ["single_1"]:
        raise ValueError(f"haystack is missing; {', '.join(variants)} needs the path of running text")
    texts = _read_some(haystack, max_haystack_chars) if haystack and variants != ["single_1"] else None
    tasks = {v: NIAH(v, counter, haystack=None if v == "single_1" else texts, **lists) for v in variants}
    encode = _encoder(tokenizer)

    def make(length: int, seed: int) -> Row:
        rng = random.Random(seed)
        task = tasks[variants[rng.randrange(len(variants))]]
        needle = task.draw(rng)
        answer = encode_answer(tokenizer, needle.question, needle.value) + _ending(tokenizer)
        room = length - len(prefix) - len(answer)
        budget = room - counter.count(needle.prompt(needle.sentence))
        strays: list[str] = []
        if decoys and task.variant != "single_1":
            strays = [_decoy(rng) for _ in range(round(max(budget, 0) * decoys / 1000))]
            budget -= sum(counter.count(" " + stray) for stray in strays)
        state = rng.getstate()
        for _ in range(_ATTEMPTS):
            rng.setstate(state)
            context = task.haystack.around(rng, budget, needle.sentence)
            prompt = encode(needle.prompt(_strew(rng, context, strays, needle.sentence)))
            if len(prompt) <= room:
                return _scored(prefix + prompt, answer)
            if budget <= 0:
                break
            budget -= len(prompt) - room
        raise _too_short(length, task.name)

    return make


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
        facts: folder of bAbI's files; without it stories of our own, qa1 to qa5, none of them twice.
        background: path of books; without it every sample is facts alone.
        tasks: `qa1` or several.
        split: of bAbI.
        form: `base` or `few_shot`.
        whole_stories: share of rows in which the story's earlier questions are asked and answered too, each
            between the facts before and after it: more answers to learn from, up to five a row from bAbI's files
            and one for every two facts of our own stories. Base form only.
        facts_only: share of rows without background: a story of our own as long as the row, asked after every other
            fact, several times the answers of a row with background; of qa4 one map after another.
        step_questions: share of a story's earlier questions that ask for one step of its task's answer ("Who has the
            milk?" in qa2), with `whole_stories`; stories of our own only.
        steps: which of `before`, `holder`, `person`, `thing` these ask for; empty = all.
        contested: share of qa3's questions, and of `before`'s, about a place to which somebody else came later from
            elsewhere, so that it takes the person and the place to answer; stories of our own only.
        hints: rows say what the first three blocks should know inside a story of our own, as labels of their outputs.
            Of the first, at a person's name, where they are, and at a question about a thing, who had it last. Of the
            second, at the place somebody walks to, a letter for that person at that place (`SIGNS`), at the end of a
            walk, where it began, of a drop, where it was, and of a question, who has the thing or where it lies, or
            for "before" the letter to look up. Of the third, at the place somebody walks to, where they came from the
            last time they came there, and at the end of a question about "before", its answer.
        decoys: share of the background that is sentences in which the books use a word of the stories ("Mary", "went
            to", "garden"): a memory learns not to keep them, though a short row would hold few.
        max_background_chars: no more than this of the books is kept in memory.
    """
    from titanslab.tasks.babi_world import MENTIONS
    from titanslab.tasks.babilong import BABILong
    from titanslab.tasks.background import Background

    counter, prefix = TokenCounter(tokenizer), leading_special_tokens(tokenizer)
    if not 0 <= decoys <= 1 or (decoys and not background):
        raise ValueError(f"decoys is {decoys!r}; it must be 0 to 1, and 0 without background")
    books = None
    if background:
        texts = _read_some(background, max_background_chars)
        books = Background(texts, counter, decoys=decoys, decoy_words=MENTIONS)
    chosen = [tasks] if isinstance(tasks, str) else list(tasks)
    if not 0 <= whole_stories <= 1 or (whole_stories and form != "base"):
        raise ValueError(f"whole_stories is {whole_stories!r}; it must be 0 to 1, and 0 in few_shot form")
    if not 0 <= facts_only <= 1 or (facts_only and (facts or form != "base")):
        raise ValueError(
            f"facts_only is {facts_only!r}; it must be 0 to 1, and 0 in few_shot form or with bAbI's files (facts)"
        )
    if hints and (facts or form != "base"):
        raise ValueError("hints is true; it must be false in few_shot form or with bAbI's files (facts)")
    makers = [
        BABILong(
            t,
            facts,
            counter,
            background=books,
            split=split,
            form=form,
            step_questions=step_questions,
            steps=steps,
            contested=contested,
        )
        for t in chosen
    ]
    encode = _encoder(tokenizer)
    if hints:
        _check_hints(encode)

    def write(task: BABILong, question: BabiQuestion, size: int, asked: bool, rng: random.Random) -> Row:
        if not asked and not hints:
            return _scored(prefix + encode(task.build(question, size, 0, rng).prompt), answer(question))
        pieces, places = task.context(question, size, rng)
        facts = dict(zip(places, question.fact_hints, strict=False))  # bAbI's files have none
        ids, labels, done = list(prefix), [-100] * len(prefix), 0
        marks: list[tuple[int, int, int]] = []
        earlier = question.earlier if asked else ()
        ends = [_between(rng, pieces, places, len(one.facts)) for one in earlier]
        for one, end in zip((*earlier, question), (*sorted(ends), len(pieces)), strict=True):
            said = [(piece, facts.get(at, ())) for at, piece in enumerate(pieces[done:end], done)]
            said.append((one.question, one.hints))
            if not hints:
                said = [(" ".join(piece for piece, _ in said), ())]
            for piece, told in said:
                space = " " if labels[len(prefix) :] else ""
                marks += [(len(ids) + at, block, says) for at, block, says in mark(space, piece, told)]
                new = encode(space + piece)
                ids, labels = ids + new, labels + [-100] * len(new)
            ids, labels, done = ids + answer(one), labels + answer(one), end
        return Row(ids, labels, marks)

    def mark(space: str, piece: str, told: Sequence[Hint]) -> list[tuple[int, int, int]]:
        """The hints of a sentence: last token of the word, block, and the id of what it says."""
        marks = []
        for hint in told:
            words = piece if hint.word < 0 else " ".join(piece.split(" ")[: hint.word + 1]).rstrip(".?")
            marks.append((len(fixed(space + words)) - 1, hint.block - 1, _hint_id(fixed, hint.says)))
        return marks

    @lru_cache(maxsize=1 << 14)
    def fixed(text: str) -> list[int]:
        return encode(text)

    @lru_cache(maxsize=1 << 14)
    def reply(question: str, answer: str) -> list[int]:
        return encode_answer(tokenizer, question, answer) + _ending(tokenizer)

    def answer(question: BabiQuestion) -> list[int]:
        return reply(question.question, question.answer)

    @lru_cache(maxsize=1 << 14)
    def tokens(fact: str) -> int:
        return counter.count_following([fact])[0]

    def story_alone(task: BABILong, length: int, rng: random.Random) -> Row:
        room = length - len(prefix)
        for _ in range(_STORY_ATTEMPTS):
            told = size = 0
            fitting: list[BabiQuestion] = []
            for one in task.story(task.task, max(2, length // _FACT_TOKENS), rng):
                size += sum(map(tokens, one.facts[told:])) + tokens(one.question) + len(answer(one))
                if size > room:
                    break
                fitting.append(one)
                told = len(one.facts)
            for one in reversed(fitting):
                row = write(task, one, 0, True, rng)
                if len(row.ids) <= length:
                    return row
        raise _too_short(length, task.name)

    def make(length: int, seed: int) -> Row:
        rng = random.Random(seed)
        task = makers[rng.randrange(len(makers))]
        if facts_only and rng.random() < facts_only:
            return story_alone(task, length, rng)
        for _ in range(_STORY_ATTEMPTS):
            question = task.draw(rng, length // _FACT_TOKENS)
            told = sum(map(tokens, question.facts))
            if told > length:
                continue  # a story longer than the row: draw another
            asked = whole_stories > 0 and rng.random() < whole_stories
            row = write(task, question, 0, asked, rng)
            if len(row.ids) > length:
                continue  # with what it asks it is longer
            size = told + length - len(row.ids)
            state = rng.getstate()
            for _ in range(_ATTEMPTS if books else 0):
                rng.setstate(state)
                longer = write(task, question, size, asked, rng)
                if len(longer.ids) <= length:
                    return longer
                size -= len(longer.ids) - length
            return row
        raise _too_short(length, task.name)

    return make


def recall_rows(tokenizer: Any, *, background: str, loss: str = "answers", **options: Any) -> MakeRow:
    """Rows of `RecallTask`; `background` is a path, the rest as there."""
    from titanslab.tasks.recall import RecallTask

    task = RecallTask(tokenizer, "\n\n".join(_read_some(background, 5_000_000)), **options)

    def make(length: int, seed: int) -> Row:
        row = task.row(length, seed, 0, loss)
        return Row(row.input_ids[0].tolist(), row.labels[0].tolist())

    return make


def kv_rows(tokenizer: Any, **options: Any) -> MakeRow:
    """Rows of `make_kv_recall`."""
    from titanslab.tasks.kv_recall import KVVocabulary, make_kv_recall

    sizes = {k: options.pop(k) for k in ("num_keys", "num_values", "num_fillers") if k in options}

    def make(length: int, seed: int) -> Row:
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        row = make_kv_recall(1, length, vocabulary=KVVocabulary(**sizes), generator=generator, **options)
        return Row(row.input_ids[0].tolist(), row.labels[0].tolist())

    return make


def _decoy(rng: random.Random) -> str:
    """A number of up to seven digits, or a hexadecimal word or several, as running text may hold them."""
    if rng.random() < 0.6:
        number = str(rng.randrange(10 ** rng.randint(1, 7)))
        return number + rng.choice(("", "", ",", ".", "s", "%", " of", " and"))
    words = ("".join(rng.choices("0123456789abcdef", k=rng.choice((1, 2, 4, 4, 8)))) for _ in range(rng.randint(1, 4)))
    return rng.choice(("-", " ", "")).join(words)


def _strew(rng: random.Random, context: str, strays: list[str], sentence: str) -> str:
    """`context` with `strays` between its words, none within `sentence`."""
    if not strays:
        return context
    before, found, after = context.partition(sentence)
    words = [before.split(" "), after.split(" ")]
    for stray in strays:
        part = words[rng.random() * len(context) > len(before)]
        part.insert(rng.randint(0, len(part)), stray)
    return " ".join(words[0]) + found + " ".join(words[1])


def _between(rng: random.Random, pieces: list[str], places: list[int], facts: int) -> int:
    """A place in `pieces` to ask at after so many facts, and before the next."""
    low = places[facts - 1] + 1 if facts else 0
    return rng.randint(low, places[facts] if facts < len(places) else len(pieces))


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    encode = encoder_of(tokenizer)
    assert encode is not None, "Mixture has checked that the tokenizer encodes"
    return encode


def _ending(tokenizer: Any) -> list[int]:
    """What ends an answer: the end-of-text token, or a full stop where there is none."""
    end = getattr(tokenizer, "eos_token_id", None)
    return [end] if end is not None else _encoder(tokenizer)(".")


def _hint_id(encode: Callable[[str], list[int]], word: str) -> int:
    """The token that stands for what a hint says: a word's first, a letter's last (the first may be the space)."""
    return encode(f" {word}")[-1 if len(word) == 1 else 0]


def _check_hints(encode: Callable[[str], list[int]]) -> None:
    """Raise ValueError unless every word that a hint may say has a token of its own."""
    from titanslab.tasks.babi_world import GIVERS, PEOPLE, PLACES, SIGNS

    words = sorted({*PLACES, *PEOPLE, *GIVERS, *SIGNS.values()})
    if len({_hint_id(encode, word) for word in words}) < len(words):
        raise ValueError(
            f"hints is true; it needs a tokenizer whose first token tells {', '.join(words)} apart, so not bytes"
        )


def _scored(prompt: list[int], answer: list[int]) -> Row:
    return Row(prompt + answer, [-100] * len(prompt) + answer)


def _too_short(length: int, name: str) -> ValueError:
    return ValueError(f"a sample of {name} does not fit {length} tokens; raise min_length or sequence_length")


def _read_some(path: str, max_chars: int) -> Sequence[str]:
    """Texts up to `max_chars` characters together."""
    texts, left = list[str](), max_chars
    for text in islice(iter_texts(path), 100_000):
        texts.append(text[:left])
        left -= len(texts[-1])
        if left <= 0:
            break
    return texts
