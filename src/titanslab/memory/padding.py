"""Rows with padding anywhere: their real tokens moved to the front, and results put back."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """Where the real tokens of a call are.

    Args:
        mask: bool `[B,T]`, True for real tokens.
        lengths: int64 `[B]`, real tokens of each row.
        order: int64 `[B,T]`, columns with the real ones first; None where they are first already.
        slot: int64 `[B,T]`, the inverse.
    """

    mask: Tensor
    lengths: Tensor
    order: Tensor | None
    slot: Tensor | None

    @classmethod
    def of(cls, mask: Tensor) -> "Padding":
        """From a mask, without a look at its values, for which the host would wait."""
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        return cls(mask, mask.sum(1), order, (mask.cumsum(1) - 1).clamp_min(0))

    def compact(self, x: Tensor) -> Tensor:
        """`[B,T,...]` with the real tokens of each row first."""
        return x if self.order is None else take(x, self.order)

    def restore(self, x: Tensor) -> Tensor:
        """Tokens of `[B,T,...]` back where they came from, 0 at padding."""
        if self.slot is not None:
            x = take(x, self.slot)
        return only(x, self.mask)


def real_tokens(lengths: Tensor, tokens: int) -> Tensor:
    """The mask `[B,T]` of rows whose first `lengths` tokens are real."""
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def take(x: Tensor, index: Tensor) -> Tensor:
    """`x [B,T,...]` gathered along T by `index [B,T]`."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def only(x: Tensor, mask: Tensor) -> Tensor:
    """`x [B,T,...]` with 0 where `mask [B,T]` is False."""
    return x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0)
