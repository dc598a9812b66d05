"""Background text for facts: runs of sentences of random books, each from a random place on."""

import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

from titanslab.data.encode import TokenCounter
from titanslab.tasks.sentences import split_sentences

_BLOCK = 256  # sentences that are counted together


class _Book:
    """Sentences of a book and their token counts; the text is split and counted at the first use.

    Args:
        text, counter: the book; measures its sentences.
        words: matches the words and phrases that `mentions` finds.
    """

    def __init__(self, text: str, counter: TokenCounter, words: re.Pattern[str]):
        self._text, self._counter, self._words = text, counter, words
        self._counts: dict[int, list[int]] = {}

    @cached_property
    def sentences(self) -> list[str]:
        text, self._text = self._text, ""  # the text does not stay in memory beside its sentences
        return split_sentences(text)

    @cached_property
    def _starts(self) -> list[int]:
        """The first character of each sentence, and the length of the book and of a space after it."""
        return list(accumulate((len(sentence) + 1 for sentence in self.sentences), initial=0))

    def place(self, share: float) -> int:
        """Index of the sentence that follows the one at `share` of the book's characters."""
        return min(bisect_right(self._starts, share * (self._starts[-1] - 1)), len(self.sentences) - 1)

    @cached_property
    def mentions(self) -> dict[str, list[int]]:
        """Indices of the sentences with a word, by word."""
        found: dict[str, list[int]] = {}
        for i, sentence in enumerate(self.sentences):
            for word in set(self._words.findall(sentence)):
                found.setdefault(word, []).append(i)
        return found

    def count(self, at: int) -> int:
        """Tokens of a sentence; those of a block are counted together."""
        block, offset = divmod(at, _BLOCK)
        if block not in self._counts:
            sentences = self.sentences[block * _BLOCK : (block + 1) * _BLOCK]
            self._counts[block] = self._counter.count_following(sentences)
        return self._counts[block][offset]


class Background:
    """Books as a source of sentences.

    Args:
        books: texts.
        counter: measures sentences.
        min_tokens: shorter sentences are left out.
        decoys: share of the tokens that goes to sentences with one of `decoy_words`, which are drawn evenly. A short
            text then holds as many of these words as a long one.
        decoy_words: words or phrases in the spelling of the books.
    """

    def __init__(
        self,
        books: Sequence[str],
        counter: TokenCounter,
        min_tokens: int = 10,
        *,
        decoys: float = 0.0,
        decoy_words: Sequence[str] = (),
    ):
        if not 0 <= decoys <= 1 or (decoys and not decoy_words):
            raise ValueError(f"decoys is {decoys!r}; it must be 0 to 1, and 0 without decoy_words")
        self._decoys, self._words = decoys, tuple(decoy_words)
        pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, self._words))})\b")
        self._books = [_Book(text, counter, pattern) for text in books if text.strip()]
        self._counter = counter
        self._min_tokens = min_tokens
        if not self._books:
            raise ValueError("background holds no book; give texts to draw sentences from")

    def draw(self, rng: random.Random, budget: int) -> list[str]:
        """Draw sentences of at most `budget` tokens in total; the last one is cut at a word to fill the budget.

        Consecutive sentences come from one book until the budget or the book ends, then from another book. Decoys
        are inserted at places that are drawn evenly.
        """
        decoys, size = self._draw_decoys(rng, int(budget * self._decoys)) if self._decoys else ([], 0)
        chosen, runs, left = list[str](), self._runs(rng), budget - size
        while left > 0:
            sentence, size = next(runs)
            if sentence := sentence if size <= left else self._cut(sentence, left):
                chosen.append(sentence)
            left -= size
        for decoy in decoys:
            chosen.insert(rng.randint(0, len(chosen)), decoy)
        return chosen

    def _draw_decoys(self, rng: random.Random, budget: int) -> tuple[list[str], int]:
        """Sentences with a decoy word and the sum of their tokens, at most `budget`."""
        chosen, total = list[str](), 0
        for _ in range(1000):
            word = self._words[rng.randrange(len(self._words))]
            book = self._books[rng.randrange(len(self._books))]
            places = book.mentions.get(word)
            if not places:
                continue  # a book may lack a rare word
            at = places[rng.randrange(len(places))]
            size = book.count(at)
            if size > budget - total:
                break
            if size >= self._min_tokens:
                chosen.append(book.sentences[at])
                total += size
        return chosen, total

    def _runs(self, rng: random.Random) -> Iterator[tuple[str, int]]:
        """Sentences and their tokens without end: those of a random book from a random place on, then of another."""
        idle = 0
        while idle <= 1000:
            book, idle = self._books[rng.randrange(len(self._books))], idle + 1
            for at in range(book.place(rng.random()), len(book.sentences)):
                size = book.count(at)
                if size >= self._min_tokens:
                    idle = 0
                    yield book.sentences[at], size
        raise ValueError(f"background has no sentences of {self._min_tokens} tokens or more; give books of prose")

    def _cut(self, sentence: str, budget: int) -> str:
        """The longest beginning of a sentence, in whole words, that fits `budget` tokens."""
        words = sentence.split(" ")
        size = bisect_right(
            range(1, len(words)), budget, key=lambda n: self._counter.count_following([" ".join(words[:n])])[0]
        )
        return " ".join(words[:size])
