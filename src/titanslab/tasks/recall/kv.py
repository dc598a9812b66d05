"""Streams of keys and values on a small vocabulary; at every repeated key the model has to predict its value.

For experiments on architectures: there is no text and no tokenizer, labels are dense, and every answer has a distance.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from titanslab.tasks.row import MakeRow, Row


class KVRecall(NamedTuple):
    """A batch of `make_kv_recall`; every tensor is int64 `[B, T]`.

    Labels follow the Hugging Face convention: the model shifts them, and -100 is not scored. The value after a
    repeated key has its own id as label, and its `distance` is the number of tokens since its last occurrence.
    Elsewhere the label is -100 and the distance 0.
    """

    input_ids: Tensor
    labels: Tensor
    distance: Tensor


def make_kv_recall(
    batch_size: int,
    length: int,
    num_pairs: int = 16,
    *,
    num_keys: int = 64,
    num_values: int = 64,
    num_fillers: int = 1,
    density: float = 1.0,
    rewrite: float = 0.0,
    generator: torch.Generator | None = None,
) -> KVRecall:
    """Make rows of `key value` pairs in random order; within a row each key has one value.

    The ids of fillers come first, then those of keys, then those of values.

    Args:
        batch_size: number of rows.
        length: tokens per row; with an odd length the last token is filler.
        num_pairs: number of different keys in a row; with more keys the distances are longer.
        num_keys, num_values, num_fillers: numbers of ids of each kind.
        density: share of the two-token slots that hold a pair; the others hold filler.
        rewrite: probability that a repeated key gets a new value, which is not scored and holds from then on.
        generator: source of randomness, on the CPU.
    """
    if not 1 <= num_pairs <= num_keys:
        raise ValueError(f"num_pairs is {num_pairs}; it must be 1 to {num_keys}, the vocabulary's num_keys")
    if length < 2 or batch_size < 1:
        raise ValueError(f"length is {length} and batch_size {batch_size}; they must be at least 2 and 1")
    if not 0 < density <= 1 or not 0 <= rewrite <= 1:
        raise ValueError(f"density is {density} and rewrite {rewrite}; they must be in (0, 1] and [0, 1]")
    slots = length // 2
    shape = (batch_size, slots)

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    used = rand(*shape) < density
    which = (rand(*shape) * num_pairs).long()
    key_ids = rand(batch_size, num_keys).argsort(1)[:, :num_pairs].gather(1, which)
    # Sort the slots by key and then by time; unused slots come last.
    order = torch.where(used, which, num_pairs).argsort(dim=1, stable=True)
    sorted_key = which.gather(1, order)
    sorted_used = used.gather(1, order)
    first = torch.ones(shape, dtype=torch.bool)
    first[:, 1:] = sorted_key[:, 1:] != sorted_key[:, :-1]
    fresh = first | (rand(*shape) < rewrite)
    candidates = (rand(*shape) * num_values).long()
    time = torch.arange(slots).expand(shape)
    source = torch.where(fresh, time, 0).cummax(1).values  # index in sorted order at which the current value was set
    sorted_value = candidates.gather(1, source)
    sorted_distance = torch.zeros(shape, dtype=torch.int64)
    sorted_distance[:, 1:] = 2 * (order[:, 1:] - order[:, :-1])
    sorted_distance[fresh | ~sorted_used] = 0
    value_ids = torch.empty(shape, dtype=torch.int64).scatter_(1, order, sorted_value)
    distance_slots = torch.empty(shape, dtype=torch.int64).scatter_(1, order, sorted_distance)

    input_ids = (rand(batch_size, length) * num_fillers).long()
    distance = torch.zeros_like(input_ids)
    keys, values = input_ids[:, 0 : 2 * slots : 2], input_ids[:, 1 : 2 * slots : 2]
    keys.copy_(torch.where(used, num_fillers + key_ids, keys))
    values.copy_(torch.where(used, num_fillers + num_keys + value_ids, values))
    distance[:, 1 : 2 * slots : 2] = distance_slots
    labels = torch.where(distance > 0, input_ids, -100)
    return KVRecall(input_ids, labels, distance)


def kv_rows(tokenizer: Any, **options: Any) -> MakeRow:
    """Training rows of `make_kv_recall`; `options` are its own."""

    def make(length: int, seed: int) -> Row:
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        row = make_kv_recall(1, length, generator=generator, **options)
        return Row(row.input_ids[0].tolist(), row.labels[0].tolist())

    return make
