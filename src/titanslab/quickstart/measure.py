"""Measurements of the trained models: bits per byte, and recall of facts by distance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from titanslab.progress import Progress
from titanslab.quickstart.corpus import Facts
from titanslab.quickstart.fit import token_losses
from titanslab.tasks.recall.samples import RecallBatch, answers_right

TOKENS_AT_ONCE = 1 << 15


@torch.inference_mode()
def bits_per_byte(model: Any, facts: Facts, seed: int) -> float:
    """Validation loss of all bytes except values at their first mention, which cannot be predicted."""
    batch = facts.validation_batch(seed)
    losses = token_losses(_logits(model, batch.input_ids), batch)
    return float(losses.sum() / (batch.labels[:, 1:] != -100).sum()) / math.log(2)


@torch.inference_mode()
def recall_by_distance(model: Any, facts: Facts, seed: int, show: Progress | None = None) -> dict[int, float]:
    """The share of questions that are answered right in every digit, for each distance in bytes."""
    distances = facts.settings.distances
    found, done = {}, 0
    for distance in distances:
        batch = facts.questions(distance, seed)
        found[distance] = _share_right(model, batch)
        done += distance
        if show is not None:
            show(done, sum(distances), f"{distance} bytes back")
    return found


def beyond(recall: dict[int, float], reach: int) -> float:
    """The mean recall over the distances of more than `reach` bytes."""
    values = [share for distance, share in recall.items() if distance > reach]
    return sum(values) / len(values)


def _share_right(model: Any, batch: RecallBatch) -> float:
    predicted = _logits(model, batch.input_ids).argmax(-1)
    predicted = torch.nn.functional.pad(predicted[:, :-1], (1, 0), value=-1)
    right, _ = answers_right(predicted, batch)
    return float(right.float().mean())


def _logits(model: Any, ids: Tensor) -> Tensor:
    rows = max(1, TOKENS_AT_ONCE // ids.shape[1])
    return torch.cat([model(input_ids=part, use_cache=False).logits for part in ids.split(rows)])
