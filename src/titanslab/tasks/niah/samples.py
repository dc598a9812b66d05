"""Samples of a needle in a haystack: RULER's S-NIAH single_1, single_2 and single_3, at any length.

A sentence with a key and its value stands at one place of a long text, and the prompt ends with a question for the
value. single_1 hides a number in a repeated line, single_2 a number in running text, single_3 a UUID in running text.

Source: RULER (Hsieh et al., 2024), tasks niah_single_1/2/3; Titans, table 2.
"""

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from titanslab.data.encode import TokenCounter
from titanslab.data.text import iter_texts, read_words
from titanslab.files import file_identity
from titanslab.tasks.niah import VARIANTS
from titanslab.tasks.niah.haystack import RepeatedLine, RunningText
from titanslab.tasks.sample import Cell, TaskSample, derive_seed, split_names

DEPTHS: tuple[int, ...] = tuple(round(100 * i / 39) for i in range(40))  # percent
RESERVED_TOKENS = 128  # for the answer
ADJECTIVES, NOUNS = (read_words(Path(__file__).with_name(f"{name}.txt")) for name in ("adjectives", "nouns"))

_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
_HEAD = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n"
)
_QUESTION = (
    "\nWhat is the special magic {kind} for {key} mentioned in the provided text?"
    " The special magic {kind} for {key} mentioned in the provided text is"
)


@dataclass(frozen=True)
class Needle:
    """A key and its value, and the texts about them; `kind` is `number` or `uuid`."""

    kind: str
    key: str
    value: str

    @property
    def sentence(self) -> str:
        return _NEEDLE.format(kind=self.kind, key=self.key, value=self.value)

    @property
    def question(self) -> str:
        """The question, followed by the words that begin the answer."""
        return _QUESTION.format(kind=self.kind, key=self.key)

    def prompt(self, context: str) -> str:
        """The whole prompt, given the haystack with the needle in it."""
        return _HEAD.format(kind=self.kind) + context + self.question


def word_lists(adjectives: str | None, nouns: str | None) -> dict[str, Any]:
    """The words in the files that are named, as keyword arguments of `NIAH`."""
    return {name: read_words(path) for name, path in (("adjectives", adjectives), ("nouns", nouns)) if path}


class NIAH:
    """Makes S-NIAH samples of one variant.

    Args:
        variant: `single_1`, `single_2` or `single_3`. tokenizer: measures the length; see `TokenCounter`.
        haystack: running text for single_2 and single_3, one text or several, which are joined; None for single_1.
        adjectives, nouns: first and second halves of the keys.
    """

    def __init__(
        self,
        variant: str,
        tokenizer: Any,
        *,
        haystack: Sequence[str] | str | None = None,
        adjectives: Sequence[str] = ADJECTIVES,
        nouns: Sequence[str] = NOUNS,
    ):
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
        if variant == "single_1" and haystack is not None:
            raise ValueError("haystack was given, but single_1 hides its needle in a line of its own; leave it out")
        if variant != "single_1" and not haystack:
            raise ValueError(f"haystack is missing; {variant} needs running text: name a file (--haystack FILE)")
        self.variant = variant
        self.name = f"niah_{variant}"
        self.kind = "uuid" if variant == "single_3" else "number"
        self.counter = tokenizer if isinstance(tokenizer, TokenCounter) else TokenCounter(tokenizer)
        self.adjectives, self.nouns = tuple(adjectives), tuple(nouns)
        self.haystack = RepeatedLine(self.counter) if haystack is None else RunningText(haystack, self.counter)
        self.num_units = cache(self._num_units)

    def _num_units(self, length: int) -> int:
        """Number of units of haystack, lines in single_1 and else words, with which the longest needle still fits."""
        probe, budget = self.probe, length - RESERVED_TOKENS

        def exact(units: int) -> int:
            return self.counter.count(probe.prompt(self.haystack.insert(units, probe.sentence, 0.5)[0]))

        smallest = exact(1)
        if smallest > budget:
            raise ValueError(
                f"length is {length} tokens, too short for {self.name}: its prompt and {RESERVED_TOKENS} tokens "
                f"of answer take at least {smallest + RESERVED_TOKENS}; ask for a longer one"
            )
        # Counts of parts add up to the count of the whole except for a nearly constant difference, `off`.
        off = smallest - self.haystack.tokens(1)
        units = self.haystack.most_units(budget - off)
        for _ in range(8):
            off = exact(units) - self.haystack.tokens(units)
            better = max(1, self.haystack.most_units(budget - off))
            if better == units:
                break
            units = better
        while units > 1 and exact(units) > budget:
            units -= 1
        return units

    @cached_property
    def probe(self) -> Needle:
        """A needle with the longest key and the longest of 256 drawn values, in tokens."""
        key = f"{self._longest(self.adjectives, '{}-')}-{self._longest(self.nouns, 'x-{}')}"
        rng = random.Random(derive_seed("niah probe", self.kind))
        return Needle(self.kind, key, self._longest([self._value(rng) for _ in range(256)]))

    def samples(self, length: int, num_samples: int, seed: int = 42) -> Iterator[TaskSample]:
        """The first `num_samples` samples of a length, each made when it is needed."""
        return (self.sample(length, index, seed) for index in range(num_samples))

    def sample(self, length: int, index: int, seed: int = 42) -> TaskSample:
        """Sample `index` of a length in tokens, a pure function of the three arguments.

        `info` holds depth (percent), key, position and number of units.
        """
        units = self.num_units(length)
        rng = random.Random(derive_seed(self.name, length, seed, index))
        needle = self.draw(rng)
        # A needle that is longer than the probe shortens the haystack.
        units = max(1, units - max(0, self._cost(needle) - self._probe_cost))
        if self.variant == "single_1":
            line = rng.randrange(units)
            depth, share = 100 * line / units, line / units
        else:
            depth = float(DEPTHS[rng.randrange(len(DEPTHS))])
            share = depth / 100
        context, position = self.haystack.insert(units, needle.sentence, share)
        key, variant = needle.key, self.variant
        info = {"variant": variant, "depth": depth, "key": key, "position": position, "num_haystack": units}
        return TaskSample(self.name, length, index, needle.prompt(context), needle.value, info)

    def draw(self, rng: random.Random) -> Needle:
        """Draw a key and a value."""
        adjective = self.adjectives[rng.randrange(len(self.adjectives))]
        noun = self.nouns[rng.randrange(len(self.nouns))]
        return Needle(self.kind, f"{adjective}-{noun}", self._value(rng))

    def _value(self, rng: random.Random) -> str:
        if self.kind == "uuid":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        return str(10**6 + rng.randrange(9 * 10**6))

    def _cost(self, needle: Needle) -> int:
        return sum(self.counter.count_following([needle.sentence, needle.question]))

    @cached_property
    def _probe_cost(self) -> int:
        return self._cost(self.probe)

    def _longest(self, words: Sequence[str], form: str = "{}") -> str:
        """The first of the words with the most tokens in the form."""
        sizes = self.counter.count_following([form.format(word) for word in words])
        return words[sizes.index(max(sizes))]


def niah_cells(
    variant: str | None,
    lengths: Sequence[int],
    counter: TokenCounter,
    counter_name: str,
    *,
    haystack: str | None = None,
    adjectives: str | None = None,
    nouns: str | None = None,
    seed: int = 42,
) -> list[Cell]:
    """Cells of S-NIAH, one per variant and length; other arguments as in `table.Task`.

    Args:
        variant: one variant, or several with commas; None = all with a haystack, else `single_1`.
        haystack: path of running text; needed by single_2 and single_3.
        adjectives, nouns: paths of word lists for the first and second halves of the keys.
    """
    chosen = split_names(variant or ("single_1" if haystack is None else ",".join(VARIANTS)), VARIANTS, "variant")
    lists = word_lists(adjectives, nouns)
    texts = None if haystack is None else list(iter_texts(haystack))
    paths = {"adjectives": adjectives, "nouns": nouns, "haystack": haystack}
    made_of = {name: file_identity(path) for name, path in paths.items() if path is not None}
    cells = []
    for one in chosen:
        own = None if one == "single_1" and len(chosen) > 1 else texts
        maker = NIAH(one, counter, haystack=own, **lists)
        settings = {"seed": seed, "variant": one, "tokenizer_for_length": counter_name}
        settings |= {name: identity for name, identity in made_of.items() if own or name != "haystack"}
        for length in lengths:
            maker.num_units(length)  # raises for a length that is too short, before any model is loaded
            make = partial(maker.sample, length, seed=seed)
            cells.append(Cell(maker.name, length, make, score, {**settings, "length": length}))
    return cells


def score(sample: TaskSample, output: str) -> dict[str, float]:
    """`contained`: 1.0 if the output contains the reference answer, in upper or lower case, else 0.0."""
    return {"contained": float(sample.target.lower() in output.lower())}
