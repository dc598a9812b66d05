"""Training rows of S-NIAH."""

import random
from typing import Any

from titanslab.data.encode import TokenCounter, encode_answer, leading_special_tokens
from titanslab.tasks.niah.samples import NIAH
from titanslab.tasks.niah.words import read_word_lists
from titanslab.tasks.row import ATTEMPTS, MakeRow, Row, encoder, ending, read_some, scored, too_short


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
    """Training rows of S-NIAH. A haystack begins at a random word, so that the model cannot learn one text by heart.

    Args:
        tokenizer: encodes to ids.
        variant: `single_1`, `single_2` or `single_3`, or a list of them, drawn evenly.
        haystack: path of running text for single_2 and single_3.
        adjectives: path of a word list for the first halves of the keys.
        nouns: path of a word list for the second halves.
        decoys: numbers and hexadecimal words that are inserted at random places, per 1,000 tokens of running text.
            A short row then holds as many of them as a long haystack does, and the memory learns not to store them.
        max_haystack_chars: at most this many characters of the haystack are loaded.
    """
    counter, prefix = TokenCounter(tokenizer), leading_special_tokens(tokenizer)
    variants = [variant] if isinstance(variant, str) else list(variant)
    if not 0 <= decoys <= 100:
        raise ValueError(f"decoys is {decoys!r}; it must be 0 to 100 per 1,000 tokens")
    lists = read_word_lists(adjectives, nouns)
    if haystack is None and variants != ["single_1"]:
        raise ValueError(f"haystack is missing; {', '.join(variants)} needs the path of running text")
    texts = read_some(haystack, max_haystack_chars) if haystack and variants != ["single_1"] else None
    tasks = {v: NIAH(v, counter, haystack=None if v == "single_1" else texts, **lists) for v in variants}
    encode = encoder(tokenizer)

    def make(length: int, seed: int) -> Row:
        rng = random.Random(seed)
        task = tasks[variants[rng.randrange(len(variants))]]
        needle = task.draw(rng)
        answer = encode_answer(tokenizer, needle.question, needle.value) + ending(tokenizer)
        room = length - len(prefix) - len(answer)
        budget = room - counter.count(needle.prompt(needle.sentence))
        strays: list[str] = []
        if decoys and task.variant != "single_1":
            strays = [_decoy(rng) for _ in range(round(max(budget, 0) * decoys / 1000))]
            budget -= sum(counter.count(" " + stray) for stray in strays)
        state = rng.getstate()
        for _ in range(ATTEMPTS):
            rng.setstate(state)
            context = task.haystack.around(rng, budget, needle.sentence)
            prompt = encode(needle.prompt(_strew(rng, context, strays, needle.sentence)))
            if len(prompt) <= room:
                return scored(prefix + prompt, answer)
            if budget <= 0:
                break
            budget -= len(prompt) - room
        raise too_short(length, task.name)

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
