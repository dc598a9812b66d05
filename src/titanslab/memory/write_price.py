"""A price on writing: the mean write gate of a model, with its gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean_write(gates: Sequence[Tensor], floor: float | None = None) -> Tensor:
    """The mean of write gates over all memories and tokens, a scalar.

    Args:
        gates: sigmoids of any shape, as `NeuralMemory` returns them under "write": 1 is a write at the stability limit,
            with any momentum.
        floor: None = the mean of the gates. A number = the mean of log(1 + gate / floor), scaled to 1 for a gate of 1:
            as a loss it also lowers gates of 0.001, whose writes add up and which their mean hardly moves. OURS.

    Raises:
        ValueError: there are no gates.
    """
    if not any(gate.numel() for gate in gates):
        raise ValueError("gates is empty: the model has no neural memory, or read nothing while it was counted")
    gate = torch.cat([g.flatten() for g in gates])
    return gate.mean() if floor is None else torch.log1p(gate / floor).mean() / math.log1p(1 / floor)
