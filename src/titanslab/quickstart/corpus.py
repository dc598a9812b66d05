"""The bundled books, and rows of their text with facts between the clauses."""

from __future__ import annotations

import lzma
from functools import partial
from importlib.resources import files
from typing import Any

from torch.nn.functional import pad

from titanslab.data import byte_tokenizer
from titanslab.quickstart.settings import TEMPLATE, Settings
from titanslab.tasks.recall.samples import RecallBatch, RecallTask, stack


def bundled_text() -> tuple[str, str]:
    """Training text and validation text, from different books whose titles stand in NOTICE."""
    packed = files("titanslab.quickstart").joinpath("text.txt.xz").read_bytes()
    *training, validation = lzma.decompress(packed).decode("ascii").split("\n\f\n")
    return "\n".join(training), validation


class Facts:
    """Rows of text in which facts are stated and repeated; each row starts with the tokenizer's <bos>."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = byte_tokenizer()
        self.training_text, self.validation_text = bundled_text()
        digits, gap = settings.value_digits, settings.gap
        make = partial(RecallTask, self.tokenizer, value_digits=digits, fact_every=gap, template=TEMPLATE)
        self._training = [make(self.training_text, num_facts=number) for number in settings.training_facts]
        self._validation = make(self.validation_text, num_facts=settings.num_facts)

    def training_batch(self, seed: int, step: int, share: float = 0.0) -> RecallBatch:
        """The batch of a step, the same for every model; its rows take each number of facts in turn.

        Args:
            share: the share of the training that is done, on which the rows' length depends.
        """
        s = self.settings
        count, length = s.shape(step, share)
        rows = [
            self._training[(step + index) % len(self._training)].row(length - 1, seed, index, "text")
            for index in range(step * s.batch_size, step * s.batch_size + count)
        ]
        return self._start(stack(rows))

    def validation_batch(self, seed: int) -> RecallBatch:
        """Rows of unseen text and facts, of the longest training rows' length."""
        s = self.settings
        return self._start(self._validation.batch(s.validation_rows, max(s.longer) * s.length - 1, seed, loss="text"))

    def questions(self, distance: int, seed: int) -> RecallBatch:
        """Rows that end with a question; its answer stands `distance` bytes before, with other facts between."""
        s = self.settings
        return self._start(self._validation.questions(distance, s.questions, seed, lead=64))

    def _start(self, batch: RecallBatch) -> RecallBatch:
        starts: list[Any] = [self.tokenizer.bos_token_id, -100, 0, 0]
        return RecallBatch(*(pad(t, (1, 0), value=start) for t, start in zip(batch, starts, strict=True)))
