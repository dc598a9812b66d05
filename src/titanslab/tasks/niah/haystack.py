"""The text around a needle. Its parts are counted once, so that long contexts are cut without another count.

A text consists of units, lines or words; `tokens` is the sum of the counts of parts, exact to a few tokens.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from titanslab.data.encode import TokenCounter
from titanslab.tasks.sentences import sentence_starts

NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_BLOCK_WORDS = 256  # words that are counted together


class RepeatedLine:
    """One line, repeated, with the needle as a line of its own (single_1)."""

    def __init__(self, counter: TokenCounter):
        few, many = (counter.count("\n".join([NOISE_LINE] * n)) for n in (8, 16))
        self._per_line = max(1, (many - few) // 8)

    def tokens(self, units: int) -> int:
        """Tokens of `units` lines."""
        return units * self._per_line

    def most_units(self, budget: int) -> int:
        """Largest number of lines that fits `budget` tokens, at least 1."""
        return max(1, budget // self._per_line)

    def insert(self, units: int, needle: str, share: float) -> tuple[str, int]:
        """The text with the needle before line `share * units`, and the index of that line."""
        index = round(share * units)
        block = NOISE_LINE + "\n"
        return (block * index + needle + "\n" + block * (units - index))[:-1], index

    def around(self, rng: random.Random, budget: int, needle: str) -> str:
        """The needle at a random place among the lines that fit `budget` tokens, possibly none."""
        units = max(0, budget // self._per_line)
        return self.insert(units, needle, rng.randrange(units + 1) / max(1, units))[0]


class RunningText:
    """The first words of a text, which repeats where it is too short, with the needle between two sentences."""

    def __init__(self, texts: Sequence[str] | str, counter: TokenCounter):
        self._words = " ".join([texts] if isinstance(texts, str) else texts).split()
        if not self._words:
            raise ValueError("haystack holds no word; give running text")
        self._counter = counter
        self._sums: list[int] = [0]  # tokens of the first n blocks of one pass over the text
        self._cut: tuple[int, str, list[int]] | None = None

    def tokens(self, units: int) -> int:
        """Tokens of the first `units` words, as the sum over blocks that are counted once."""
        rounds, rest = divmod(units, len(self._words))
        total = rounds * self._measured(len(self._words))[-1] if rounds else 0
        blocks, tail = divmod(rest, _BLOCK_WORDS)
        total += self._measured(rest)[blocks]
        if tail:
            start = blocks * _BLOCK_WORDS
            total += self._counter.count_following([" ".join(self._words[start : start + tail])])[0]
        return total

    def most_units(self, budget: int) -> int:
        """Largest number of words that fits `budget` tokens, at least 1."""
        size = len(self._words)
        low, rounds = 0, 0
        if budget >= size:  # a word has one token or more, so a smaller budget ends in the first pass
            whole = self._measured(size)[-1]
            rounds, budget = divmod(budget, whole)
            low = rounds * size
        sums = self._measured(min(size, budget + _BLOCK_WORDS))
        block = min(bisect_right(sums, budget) - 1, len(sums) - 1)
        start, left = block * _BLOCK_WORDS, budget - sums[block]
        words = self._words[start : min(size, start + _BLOCK_WORDS)]
        inner = list(accumulate(self._counter.count_following(words)))
        return max(1, low + min(size, start + bisect_right(inner, left)))

    def insert(self, units: int, needle: str, share: float) -> tuple[str, int]:
        """The text with the needle after `share` of its sentences, and the number of sentences before the needle."""
        if self._cut is None or self._cut[0] != units:
            text = " ".join((self._words * (1 + units // len(self._words)))[:units])
            self._cut = (units, text, sentence_starts(text))
        _, text, starts = self._cut
        position = int(len(starts) * share)
        if position >= len(starts):
            return f"{text} {needle}", position
        return f"{text[: starts[position]]}{needle} {text[starts[position] :]}", position

    def around(self, rng: random.Random, budget: int, needle: str) -> str:
        """The needle between two sentences of a run of words that starts at random and fits `budget` tokens."""
        at, chosen = rng.randrange(len(self._words)), list[str]()
        while budget > 0:
            block = self._words[at : at + _BLOCK_WORDS]
            size = self._counter.count_following([" ".join(block)])[0]
            if size > budget:
                inner = list(accumulate(self._counter.count_following(block)))
                chosen += block[: bisect_right(inner, budget)]
                break
            chosen += block
            budget -= size
            at = (at + len(block)) % len(self._words)
        text = " ".join(chosen)
        starts = [*sentence_starts(text), len(text)] if text else [0]
        cut = starts[rng.randrange(len(starts))]
        return " ".join(part for part in (text[:cut].rstrip(), needle, text[cut:]) if part)

    def _measured(self, words: int) -> list[int]:
        """Tokens of the first n blocks, for n up to the block that holds word `words` of the first pass."""
        words = min(words, len(self._words))
        start = (len(self._sums) - 1) * _BLOCK_WORDS
        if start < words:
            blocks = [" ".join(self._words[at : at + _BLOCK_WORDS]) for at in range(start, words, _BLOCK_WORDS)]
            for size in self._counter.count_following(blocks):
                self._sums.append(self._sums[-1] + size)
        return self._sums
