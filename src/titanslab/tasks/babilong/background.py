"""Background text for facts: runs of sentences of random books, each from a random place on."""

import random
import re
from bisect import bisect_right
from collections.abc import Sequence

from titanslab.data.encode import TokenCounter
from titanslab.tasks.sentences import split_sentences

_BLOCK = 256  # sentences that are counted together


class _Book:
    """Sentences of a book and their token counts; the text is split and counted at the first use."""

    def __init__(self, text: str, counter: TokenCounter):
        self._text: str | None = text
        self._counter = counter
        self._sentences: list[str] = []
        self._starts: list[int] = []
        self._counts: list[int] = []
        self._mentions: dict[str, list[int]] | None = None

    def sentences(self) -> list[str]:
        if self._text is not None:
            self._sentences, self._text = split_sentences(self._text), None
            self._counts = [-1] * len(self._sentences)
            total = 0
            for sentence in self._sentences:
                self._starts.append(total)
                total += len(sentence) + 1
        return self._sentences

    def place(self, share: float) -> int:
        """Index of the sentence that follows the one at `share` of the book's characters."""
        sentences = self.sentences()
        end = self._starts[-1] + len(sentences[-1])
        return min(bisect_right(self._starts, share * end), len(sentences) - 1)

    def mentions(self, word: str, pattern: re.Pattern[str]) -> list[int]:
        """Indices of the sentences with `word`, which must be one of the words that `pattern` matches."""
        if self._mentions is None:
            self._mentions = {}
            for i, sentence in enumerate(self.sentences()):
                for found in set(pattern.findall(sentence)):
                    self._mentions.setdefault(found, []).append(i)
        return self._mentions.get(word, [])

    def counts(self, block: int) -> list[int]:
        """Token counts of a block of sentences."""
        low, high = block * _BLOCK, min((block + 1) * _BLOCK, len(self.sentences()))
        if self._counts[low] < 0:
            self._counts[low:high] = self._counter.count_following(self._sentences[low:high])
        return self._counts[low:high]


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
        self._pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, self._words))})\b")
        self._books = [_Book(text, counter) for text in books if text.strip()]
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
        chosen = self._draw_runs(rng, budget - size)
        for decoy in decoys:
            chosen.insert(rng.randint(0, len(chosen)), decoy)
        return chosen

    def _draw_decoys(self, rng: random.Random, budget: int) -> tuple[list[str], int]:
        """Sentences with a decoy word and the sum of their tokens, at most `budget`."""
        chosen, total = list[str](), 0
        for _ in range(1000):
            word = self._words[rng.randrange(len(self._words))]
            book = self._books[rng.randrange(len(self._books))]
            places = book.mentions(word, self._pattern)
            if not places:
                continue  # a book may lack a rare word
            at = places[rng.randrange(len(places))]
            size = book.counts(at // _BLOCK)[at % _BLOCK]
            if size > budget - total:
                break
            if size >= self._min_tokens:
                chosen.append(book.sentences()[at])
                total += size
        return chosen, total

    def _draw_runs(self, rng: random.Random, budget: int) -> list[str]:
        """Runs of consecutive sentences, `budget` tokens in total."""
        chosen: list[str] = []
        idle = 0
        while budget > 0:
            book = self._books[rng.randrange(len(self._books))]
            sentences = book.sentences()
            at = book.place(rng.random())
            before = len(chosen)
            while budget > 0 and at < len(sentences):
                block, offset = divmod(at, _BLOCK)
                for size in book.counts(block)[offset:]:
                    if size >= self._min_tokens:
                        if size > budget:
                            cut = self._cut(sentences[at], budget)
                            return [*chosen, cut] if cut else chosen
                        chosen.append(sentences[at])
                        budget -= size
                    at += 1
            idle = 0 if len(chosen) > before else idle + 1
            if idle > 1000:
                raise ValueError(
                    f"background has no sentences of {self._min_tokens} tokens or more; give books of prose"
                )
        return chosen

    def _cut(self, sentence: str, budget: int) -> str:
        """The longest beginning of a sentence, in whole words, that fits `budget` tokens."""
        words = sentence.split(" ")
        low, high = 0, len(words) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._counter.count_following([" ".join(words[:middle])])[0] <= budget:
                low = middle
            else:
                high = middle - 1
        return " ".join(words[:low])
