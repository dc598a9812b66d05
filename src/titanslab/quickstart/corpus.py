"""The bundled books, and rows of their text with facts between the clauses."""

from __future__ import annotations

import lzma
from importlib.resources import files
from typing import Any

import torch

from titanslab.data import byte_tokenizer
from titanslab.quickstart.settings import TEMPLATE, Settings
from titanslab.tasks.recall.samples import RecallBatch, RecallTask

SEPARATOR = "\n\f\n"


def bundled_text() -> tuple[str, str]:
    """Training text and validation text, from different books whose titles stand in NOTICE."""
    packed = files("titanslab.quickstart").joinpath("text.txt.xz").read_bytes()
    *training, validation = lzma.decompress(packed).decode("ascii").split(SEPARATOR)
    return "\n".join(training), validation


class Facts:
    """Rows of text in which facts are stated and repeated; each row starts with the tokenizer's <bos>."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = byte_tokenizer()
        self.training_text, self.validation_text = bundled_text()
        self._training = [self._task(self.training_text, number) for number in settings.training_facts]
        self._validation = self._task(self.validation_text, settings.num_facts)

    def _task(self, text: str, num_facts: int) -> RecallTask:
        s = self.settings
        return RecallTask(
            self.tokenizer, text, num_facts=num_facts, value_digits=s.value_digits, fact_every=s.gap, template=TEMPLATE
        )

    def training_batch(self, seed: int, step: int, share: float = 0.0) -> RecallBatch:
        """The batch of a step, the same for every model; its rows take each number of facts in turn.

        Args:
            share: the share of the training that is done, on which the rows' length depends.
        """
        s = self.settings
        count, length = s.shape(step, share)
        rows = []
        for index in range(step * s.batch_size, step * s.batch_size + count):
            task = self._training[(step + index) % len(self._training)]
            rows.append(task.row(length - 1, seed, index, "text"))
        return self._start(RecallBatch(*(torch.cat(tensors) for tensors in zip(*rows, strict=True))))

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
        return RecallBatch(
            *(torch.nn.functional.pad(tensor, (1, 0), value=start) for tensor, start in zip(batch, starts, strict=True))
        )
