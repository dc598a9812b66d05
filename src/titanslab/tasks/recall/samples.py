"""Facts in running text whose values come again at a distance: the quickstart's measure of memory.

A row is running text in which sentences such as "The secret of Aldora is 4821." occur again and again for a few
names. The value is predictable at each repetition of a name. The distance from its last occurrence determines whether
a window of attention still contains it.
"""

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from titanslab.data.encode import TextEncoder
from titanslab.data.packing import IGNORED
from titanslab.data.text import read_words
from titanslab.tasks.row import ATTEMPTS, MakeRow, Row, read_some, too_short
from titanslab.tasks.sample import derive_seed

TEMPLATE = " The secret of {key} is {value}."
NAMES = read_words(Path(__file__).with_name("names.txt"))
Fact = tuple[list[int], list[int]]  # the ids of a question and of its value


class RecallBatch(NamedTuple):
    """A batch of rows; every tensor is int64 `[B, T]`.

    `labels` are not shifted, and -100 is not scored. `distance` is, at each token of a scored answer, the number of
    tokens from the answer's last occurrence, and 0 elsewhere. `answer` numbers the scored answers of a row from 1, at
    each of their tokens, and is 0 elsewhere.
    """

    input_ids: Tensor
    labels: Tensor
    distance: Tensor
    answer: Tensor


def stack(rows: Sequence[RecallBatch]) -> RecallBatch:
    """Batches of rows of one length as one batch."""
    return RecallBatch(*(torch.cat(tensors) for tensors in zip(*rows, strict=True)))


class _Row:
    """Tokens of a row so far, with the last position of each key's value."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.last: dict[int, int] = {}
        self.answers: list[tuple[int, int, int]] = []  # start, number of tokens, distance (0 = first occurrence)


class RecallTask:
    """Makes training rows, and questions at given distances.

    Args:
        tokenizer: Hugging Face tokenizer or `tokenizers.Tokenizer`.
        background: the running text.
        num_facts, value_digits: number of names in a row, and digits of a value.
        fact_every: mean number of background tokens between two facts; a gap ends at the end of a clause.
        template: text of a fact; the part before `{value}` is the question.
    """

    def __init__(
        self,
        tokenizer: Any,
        background: str,
        *,
        num_facts: int = 8,
        value_digits: int = 4,
        fact_every: int = 64,
        template: str = TEMPLATE,
    ):
        encoder = TextEncoder(tokenizer)
        self._encode = encoder.ids
        if not 1 <= num_facts <= len(NAMES):
            raise ValueError(f"num_facts is {num_facts}; it must be 1 to {len(NAMES)}, the number of names")
        if value_digits < 1 or fact_every < 1:
            raise ValueError(f"value_digits is {value_digits} and fact_every {fact_every}; both must be at least 1")
        if re.findall(r"{key}|{value}", template) != ["{key}", "{value}"]:
            raise ValueError(f"template is {template!r}; it must hold {{key}} and {{value}} once each, in this order")
        before, _, after = template.partition("{value}")
        self.num_facts, self.value_digits, self.fact_every = num_facts, value_digits, fact_every
        pieces = encoder.encode(_clauses(background))
        self._background = np.concatenate([np.empty(0, np.int64), *pieces])
        self._breaks = list(accumulate(map(len, pieces)))  # ends of clauses, at which a fact may stand
        if len(self._background) < 4 * fact_every:
            raise ValueError(f"background has {len(self._background)} tokens; it must have at least {4 * fact_every}")
        # The space before a value is encoded with the value, because tokenizers join a space to the next word.
        self._space = " " if before.endswith(" ") else ""
        head = before.removesuffix(" ")
        self._questions = [self._encode(head.replace("{key}", name)) for name in NAMES]
        self._after = self._encode(after)

    def row(self, length: int, seed: int, index: int, loss: str = "answers") -> RecallBatch:
        """Row `index` of `length` tokens, `[1, T]`; it is a pure function of (seed, index).

        Args:
            length: tokens of the row.
            seed: another seed gives other rows.
            index: number of the row.
            loss: `answers` scores the repeated values alone; `text` scores every token except the first occurrence
                of each value, which cannot be predicted.
        """
        if loss not in ("answers", "text"):
            raise ValueError(f"loss is {loss!r}; it must be answers or text")
        rng = random.Random(derive_seed("recall", seed, index))
        row = _Row()
        self._weave(row, rng, length, self._facts(rng), range(self.num_facts))
        return self._finish(row, length, loss)

    def batch(self, batch_size: int, length: int, seed: int, index: int = 0, loss: str = "answers") -> RecallBatch:
        """Rows `index * batch_size` to `(index + 1) * batch_size - 1`, `[B, T]`."""
        return stack([self.row(length, seed, index * batch_size + i, loss) for i in range(batch_size)])

    def questions(self, distance: int, num_samples: int, seed: int, lead: int = 0) -> RecallBatch:
        """`num_samples` rows that end with one question, whose answer last occurred exactly `distance` tokens before.

        The distance is that from the start of the value to the start of the answer. Other facts stand between the two,
        as in training, and `lead` tokens of background and other facts before the fact of the question.

        Returns:
            A batch in which every row ends with its answer, so the ids before the answer are a prompt. Shorter rows
            are padded on the right with their last token, which is not scored there.
        """
        rows = [self._question(distance, seed, index, lead) for index in range(num_samples)]
        width = max(len(row.ids) for row in rows)
        return stack([self._finish(row, width, "answers") for row in rows])

    def _facts(self, rng: random.Random) -> list[Fact]:
        """Draw the facts of a row."""
        questions, digits = rng.sample(self._questions, self.num_facts), self.value_digits
        return [(q, self._encode(f"{self._space}{rng.randrange(10**digits):0{digits}d}")) for q in questions]

    def _weave(self, row: _Row, rng: random.Random, end: int, facts: list[Fact], choices: range) -> None:
        """Add background and facts until the row has `end` tokens; a fact that does not fit is left out."""
        at = rng.randrange(len(self._background))
        while len(row.ids) < end:
            gap = rng.randrange(2 * self.fact_every + 1)
            gap = self._breaks[min(bisect_left(self._breaks, at + gap), len(self._breaks) - 1)] - at
            gap = min(gap, end - len(row.ids))
            row.ids += self._background.take(range(at, at + gap), mode="wrap").tolist()
            at = (at + gap) % len(self._background)
            if not choices or len(row.ids) >= end:
                continue
            which = choices[rng.randrange(len(choices))]
            if len(row.ids) + sum(map(len, facts[which])) + len(self._after) <= end:
                self._state(row, which, facts)

    def _state(self, row: _Row, which: int, facts: list[Fact]) -> None:
        """Add fact `which` to the row."""
        question, value = facts[which]
        row.ids += question
        start = len(row.ids)
        row.answers.append((start, len(value), start - row.last.get(which, start)))
        row.last[which] = start
        row.ids += value + self._after

    def _question(self, distance: int, seed: int, index: int, lead: int) -> _Row:
        """The row of one question, which ends with its answer."""
        rng = random.Random(derive_seed("recall question", seed, distance, index))
        facts, others = self._facts(rng), range(1, self.num_facts)
        question, value = facts[0]
        row = _Row()
        longest = max(len(ids) for ids in self._questions)  # so that all rows have the same length
        self._weave(row, rng, lead + longest - len(question), facts, others)
        self._state(row, 0, facts)
        shortest = len(value) + len(self._after) + len(question)
        if distance < shortest:
            raise ValueError(f"distance is {distance} tokens; a fact and its question take at least {shortest}")
        self._weave(row, rng, row.last[0] + distance - len(question), facts, others)
        self._state(row, 0, facts)
        row.ids, row.answers = row.ids[: len(row.ids) - len(self._after)], row.answers[-1:]
        return row

    def _finish(self, row: _Row, length: int, loss: str) -> RecallBatch:
        """The row with `length` tokens, cut or filled up with its last one."""
        ids = torch.tensor(row.ids[:length] + row.ids[-1:] * (length - len(row.ids)))
        labels = ids.clone() if loss == "text" else torch.full_like(ids, -100)
        distances, answer = torch.zeros_like(ids), torch.zeros_like(ids)
        number = 0
        for start, size, distance in row.answers:
            span = slice(start, start + size)
            if distance == 0:
                labels[span] = -100
                continue
            number += 1
            labels[span], distances[span], answer[span] = ids[span], distance, number
        return RecallBatch(ids[None], labels[None], distances[None], answer[None])


def _clauses(text: str) -> list[str]:
    """Split a text after each mark of punctuation that white space follows; the space begins the next clause."""
    ends = [match.end() for match in re.finditer(r"[.,;:!?][\"”')]*(?=\s)", text)]
    return [text[start:end] for start, end in pairwise([0, *ends, len(text)]) if end > start]


def recall_rows(tokenizer: Any, *, background: str, loss: str = "answers", **options: Any) -> MakeRow:
    """Training rows of `RecallTask`.

    Args:
        tokenizer, background: encodes to ids; path of running text.
        loss: `answers` or `text`; see `RecallTask.row`.
        options: of `RecallTask`.

    A row raises ValueError if its length has no room for a fact and its repetition.
    """
    task = RecallTask(tokenizer, "\n\n".join(read_some(background, 5_000_000)), **options)

    def make(length: int, seed: int) -> Row:
        for index in range(ATTEMPTS):  # a short row may hold no fact twice, and then no answer
            row = task.row(length, seed, index, loss)
            if bool((row.labels != IGNORED).any()):
                return Row(row.input_ids[0].tolist(), row.labels[0].tolist())
        raise too_short(length, "recall")

    return make


def answers_right(predictions: Tensor, batch: RecallBatch) -> Tensor:
    """Which answers are right in every token.

    Args:
        predictions: int64 `[B, T]`, the token predicted *for* each position: argmax of the logits, shifted right.
        batch: the rows.

    Returns:
        bool `[number of answers]`. Greedy generation gives the same result, because it reads the same tokens up to
        the first wrong one.
    """
    asked = batch.answer > 0
    rows = torch.arange(len(batch.answer)).unsqueeze(1).expand_as(batch.answer)[asked.cpu()]
    _, where = torch.unique(torch.stack([rows, batch.answer[asked].cpu()]), dim=1, return_inverse=True)
    count = int(where.max()) + 1 if len(where) else 0
    right = (predictions == batch.input_ids)[asked].cpu()
    return torch.zeros(count, dtype=torch.int64).index_add_(0, where, (~right).long()) == 0
