"""A price on writing: the mean write gate of a model, with its gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean_write(gates: Sequence[Tensor], floor: float | None = None) -> Tensor:
    """The mean of write gates over all memories and tokens, a scalar.

    Args:
        gates: sigmoids of any shape, as `NeuralMemory` returns them under "write": 1 is a write at the stability limit,
            whatever momentum does to its lag.
        floor: take the mean of log(1 + gate / floor), 1 for a gate of 1. A price on the gate itself hardly moves a gate
            of 0.001: its slope fades with it, though a hundred thousand such writes add up. The logarithm pushes every
            gate above the floor about as hard. OURS.

    Raises:
        ValueError: no gates.
    """
    if not any(gate.numel() for gate in gates):
        raise ValueError("gates is empty: the model has no neural memory, or read nothing while it was counted")
    gate = torch.cat([g.flatten() for g in gates])
    return gate.mean() if floor is None else torch.log1p(gate / floor).mean() / math.log1p(1 / floor)
