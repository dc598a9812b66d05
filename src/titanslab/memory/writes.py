"""How much a model writes: its mean write gate, with gradient, so that training can put a price on it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from titanslab.memory.module import NeuralMemory


@contextmanager
def counting_writes(model: nn.Module) -> Iterator[list[list[Tensor]]]:
    """While open, every memory of `model` adds the write gates of what it reads to a list of its own.

    Gates are sigmoids `[B,T,H,1 or L]`, with padding `[tokens,H,1 or L]`: 1 is a write at the stability limit,
    whatever momentum does to its lag.
    """
    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    writes: list[list[Tensor]] = [[] for _ in memories]
    try:
        for memory, own in zip(memories, writes, strict=True):
            memory.on_write = torch.compiler.disable(own.append)  # what was counted is no input of compiled code
        yield writes
    finally:
        for memory in memories:
            memory.on_write = None


def mean_write(writes: list[list[Tensor]], floor: float | None = None) -> Tensor:
    """The mean gate over all memories and tokens, a scalar; ValueError where nothing was written.

    With `floor`, the mean of log(1 + gate / floor), 1 for a gate of 1. A price on the gate itself hardly moves one of
    0.001: its slope fades with it, though a hundred thousand such writes add up. This one pushes every gate alike until
    it is about the floor, and an open one least. OURS.
    """
    gates = [gate.flatten() for own in writes for gate in own]
    if not any(gate.numel() for gate in gates):
        raise ValueError("writes is empty: the model has no neural memory, or read nothing while it was counted")
    gate = torch.cat(gates)
    return gate.mean() if floor is None else torch.log1p(gate / floor).mean() / math.log1p(1 / floor)
