"""Training rows of S-NIAH."""

import random
from typing import Any

from titanslab.data.encode import TextEncoder, TokenCounter, encode_answer, leading_special_tokens
from titanslab.tasks.niah.samples import NIAH, word_lists
from titanslab.tasks.row import MakeRow, Row, ending, fit, read_some, scored, too_short


def niah_rows(
    tokenizer: Any,
    *,
    variant: str | list[str] = "single_1",
    haystack: str | None = None,
    adjectives: str | None = None,
    nouns: str | None = None,
    decoys: float = 0.0,
) -> MakeRow:
    """Training rows of S-NIAH. A haystack begins at a random word, so that the model cannot learn one text by heart.

    Args:
        tokenizer: encodes to ids.
        variant: `single_1`, `single_2` or `single_3`, or a list of them, drawn evenly.
        haystack: path of running text for single_2 and single_3; `MAX_CHARS` of it are loaded at most.
        adjectives, nouns: paths of word lists for the first and second halves of the keys.
        decoys: numbers and hexadecimal words that are inserted at random places, per 1,000 tokens of running text.
            A short row then holds as many of them as a long haystack does, and the memory learns not to store them.
    """
    counter, prefix = TokenCounter(tokenizer), leading_special_tokens(tokenizer)
    variants = [variant] if isinstance(variant, str) else list(variant)
    if not 0 <= decoys <= 100:
        raise ValueError(f"decoys is {decoys!r}; it must be 0 to 100 per 1,000 tokens")
    lists = word_lists(adjectives, nouns)
    texts = read_some(haystack) if haystack and variants != ["single_1"] else None
    tasks = {v: NIAH(v, counter, haystack=None if v == "single_1" else texts, **lists) for v in variants}
    encode = TextEncoder(tokenizer).ids

    def make(length: int, seed: int) -> Row:
        rng = random.Random(seed)
        task = tasks[variants[rng.randrange(len(variants))]]
        needle = task.draw(rng)
        answer = encode_answer(tokenizer, needle.question, needle.value) + ending(tokenizer)
        budget = length - len(prefix) - len(answer) - counter.count(needle.prompt(needle.sentence))
        strays: list[str] = []
        if decoys and task.variant != "single_1":
            strays = [_decoy(rng) for _ in range(round(max(budget, 0) * decoys / 1000))]
            budget -= sum(counter.count(" " + stray) for stray in strays)

        def write(budget: int) -> Row:
            context = task.haystack.around(rng, budget, needle.sentence)
            prompt = encode(needle.prompt(_strew(rng, context, strays, needle.sentence)))
            return scored(prefix + prompt, answer)

        row = fit(write, budget, length, rng)
        if row is None:
            raise too_short(length, task.name)
        return row

    return make


def _decoy(rng: random.Random) -> str:
    """A number of up to seven digits, or one to four hexadecimal words, in the forms that running text has."""
    if rng.random() < 0.6:
        number = str(rng.randrange(10 ** rng.randint(1, 7)))
        return number + rng.choice(("", "", ",", ".", "s", "%", " of", " and"))
    words = ("".join(rng.choices("0123456789abcdef", k=rng.choice((1, 2, 4, 4, 8)))) for _ in range(rng.randint(1, 4)))
    return rng.choice(("-", " ", "")).join(words)


def _strew(rng: random.Random, context: str, strays: list[str], sentence: str) -> str:
    """Insert `strays` between the words of `context`, outside `sentence`."""
    if not strays:
        return context
    before, found, after = context.partition(sentence)
    words = [before.split(" "), after.split(" ")]
    for stray in strays:
        part = words[rng.random() * len(context) > len(before)]
        part.insert(rng.randint(0, len(part)), stray)
    return " ".join(words[0]) + found + " ".join(words[1])
