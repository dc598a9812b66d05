"""How much a model writes: its mean write gate, with gradient, so that training can put a price on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from titanslab.memory.module import NeuralMemory


@contextmanager
def counting_writes(model: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every memory of `model` adds the write gates of what it reads to the list: sigmoids, 0 to 1.

    1 is a write at the stability limit, whatever momentum does to its lag. Padding is left out.
    """
    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    writes: list[Tensor] = []
    try:
        for memory in memories:
            memory.writes = writes
        yield writes
    finally:
        for memory in memories:
            memory.writes = None


def mean_write(writes: list[Tensor]) -> Tensor:
    """The mean gate, a scalar; ValueError where nothing was written."""
    if not any(w.numel() for w in writes):
        raise ValueError("writes is empty: the model has no neural memory, or read nothing while it was counted")
    return torch.cat([w.flatten() for w in writes]).mean()
