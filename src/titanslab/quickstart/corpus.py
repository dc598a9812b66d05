"""The bundled books, with facts woven in."""

from __future__ import annotations

import lzma
from importlib.resources import files
from typing import Any

import torch

from titanslab.data import byte_tokenizer
from titanslab.quickstart.settings import TEMPLATE, Settings
from titanslab.tasks.recall import RecallBatch, RecallTask

SEPARATOR = "\n\f\n"


def bundled_text() -> tuple[str, str]:
    """Training and validation text, from different books (titles in NOTICE)."""
    packed = files("titanslab.quickstart").joinpath("text.txt.xz").read_bytes()
    *training, validation = lzma.decompress(packed).decode("ascii").split(SEPARATOR)
    return "\n".join(training), validation


class Facts:
    """Rows of text in which facts stand and come again; each starts with the tokenizer's <bos>."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = byte_tokenizer()
        self.training_text, self.validation_text = bundled_text()
        self._training = [self._task(self.training_text, gap) for gap in settings.gaps]
        self._validation = self._task(self.validation_text, settings.gaps[-1])

    def _task(self, text: str, gap: int) -> RecallTask:
        s = self.settings
        return RecallTask(
            self.tokenizer,
            text,
            num_facts=s.num_facts,
            value_digits=s.value_digits,
            fact_every=gap,
            template=TEMPLATE,
        )

    def training_batch(self, seed: int, step: int) -> RecallBatch:
        """Batch `step`, the same for every model: rows of each gap in turn."""
        s = self.settings
        rows = [
            self._training[i % len(self._training)].row(s.length - 1, seed, step * s.batch_size + i, "text")
            for i in range(s.batch_size)
        ]
        return self._start(RecallBatch(*(torch.cat(tensors) for tensors in zip(*rows, strict=True))))

    def validation_batch(self, seed: int) -> RecallBatch:
        """Unseen text and facts, twice as long as training rows."""
        s = self.settings
        return self._start(self._validation.batch(s.validation_rows, 2 * s.length - 1, seed, loss="text"))

    def questions(self, distance: int, seed: int) -> RecallBatch:
        """Rows that end with a question whose answer stands `distance` bytes back, other facts in between."""
        s = self.settings
        return self._start(self._validation.questions(distance, s.questions, seed, lead=64))

    def _start(self, batch: RecallBatch) -> RecallBatch:
        starts: list[Any] = [self.tokenizer.bos_token_id, -100, 0, 0]
        return RecallBatch(
            *(torch.nn.functional.pad(tensor, (1, 0), value=start) for tensor, start in zip(batch, starts, strict=True))
        )
