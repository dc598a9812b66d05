"""How much a model writes: its mean write gate, with gradient, so that training can put a price on it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from titanslab.memory.layer import NeuralMemory


@contextmanager
def counting_writes(model: nn.Module, alphas: list[list[Tensor]] | None = None) -> Iterator[list[list[Tensor]]]:
    """While open, every memory of `model` adds the write gates of what it reads to a list of its own.

    Gates are sigmoids `[B,T,H,1 or L]`, with padding `[tokens,H,1 or L]`: 1 is a write at the stability limit,
    whatever momentum does to its lag. `alphas`, an empty list, gets such lists of what each memory forgets.
    """
    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    writes: list[list[Tensor]] = [[] for _ in memories]
    forgets: list[list[Tensor]] = [] if alphas is None else alphas
    forgets += [[] for _ in memories]

    def keeper(own: list[Tensor], forgotten: list[Tensor]) -> Callable[[Tensor, Tensor], None]:
        def keep(theta: Tensor, alpha: Tensor) -> None:
            own.append(theta)
            if alphas is not None:
                forgotten.append(alpha)

        return keep

    try:
        for memory, own, forgotten in zip(memories, writes, forgets, strict=True):
            # what was counted is no input of compiled code
            memory.on_write = torch.compiler.disable(keeper(own, forgotten))
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
