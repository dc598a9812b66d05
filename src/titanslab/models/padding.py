"""Padding anywhere in a row, moved to the right so that blocks see one case only."""

from dataclasses import dataclass

import torch
from torch import Tensor

from titanslab.memory.padding import take


@dataclass(frozen=True)
class Padding:
    """Where a call's real tokens are.

    Args:
        mask: bool `[B, T]` as given. lengths: int64 `[B]`, real tokens of each row.
        order: int64 `[B, T]`, columns with the real ones first; None where they are first already.
        slot: int64 `[B, T]`, the inverse.
    """

    mask: Tensor
    lengths: Tensor
    order: Tensor | None
    slot: Tensor | None

    def compact(self, x: Tensor) -> Tensor:
        """`[B, T, ...]` with each row's real tokens first."""
        return x if self.order is None else take(x, self.order)

    def restore(self, x: Tensor) -> Tensor:
        """Tokens of `[B, T, ...]` back where they came from, 0 at padding."""
        if self.slot is not None:
            x = take(x, self.slot)
        return x * self.mask.view(*self.mask.shape, *[1] * (x.dim() - 2))


def read_mask(attention_mask: Tensor | None, batch: int, tokens: int, past: int) -> Padding | None:
    """What an attention mask says of the newest `tokens` columns; None where all of them are real.

    Raises:
        ValueError: a mask that is not `[B, T]` or `[B, past + T]`.
    """
    if attention_mask is None:
        return None
    shape = tuple(attention_mask.shape)
    if len(shape) != 2 or shape[0] != batch or shape[1] not in (tokens, past + tokens):
        longer = f" or [{batch}, {past + tokens}] with the past" if past else ""
        raise ValueError(f"attention_mask must have shape [{batch}, {tokens}]{longer}, got {list(shape)}")
    mask = attention_mask[:, -tokens:].bool()
    if bool(mask.all()):
        return None
    lengths = mask.sum(dim=1)
    if bool((mask == (torch.arange(tokens, device=mask.device) < lengths[:, None])).all()):
        return Padding(mask, lengths, None, None)
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return Padding(mask, lengths, order, order.argsort(dim=1))
