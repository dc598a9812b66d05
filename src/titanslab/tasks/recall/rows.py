"""Training rows of the recall tasks."""

from typing import Any

import torch

from titanslab.tasks.recall.kv import make_kv_recall
from titanslab.tasks.recall.samples import RecallTask
from titanslab.tasks.row import MakeRow, Row, read_some


def recall_rows(tokenizer: Any, *, background: str, loss: str = "answers", **options: Any) -> MakeRow:
    """Training rows of `RecallTask`.

    Args:
        tokenizer: encodes to ids.
        background: path of running text.
        loss: `answers` or `text`; see `RecallTask.row`.
        options: of `RecallTask`.
    """
    task = RecallTask(tokenizer, "\n\n".join(read_some(background, 5_000_000)), **options)

    def make(length: int, seed: int) -> Row:
        row = task.row(length, seed, 0, loss)
        return Row(row.input_ids[0].tolist(), row.labels[0].tolist())

    return make


def kv_rows(tokenizer: Any, **options: Any) -> MakeRow:
    """Training rows of `make_kv_recall`; `options` are its own."""

    def make(length: int, seed: int) -> Row:
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        row = make_kv_recall(1, length, generator=generator, **options)
        return Row(row.input_ids[0].tolist(), row.labels[0].tolist())

    return make
