"""Rows with padding anywhere: their real tokens moved to the front, and results put back."""

import torch
from torch import Tensor


def hiding(mask: Tensor | None) -> Tensor | None:
    """The mask, None where it hides nothing and is small enough to look: MAC's decode step brings one."""
    if mask is None or mask.shape[1] > 1 or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return mask
    return None if bool(mask.all()) else mask


def to_front(x: Tensor, mask: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """`x [B,T,...]` and `reset` with a row's real tokens first: x, bool `[B,T]` which are real, reset, then each
    token's place in its new row, for `put_back`, and the number of real tokens `[B]`."""
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    slot, lengths = (mask.cumsum(1) - 1).clamp_min(0), mask.sum(1)
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return take(x, order), real, None if reset is None else take(reset, order) & real, slot, lengths


def take(x: Tensor, index: Tensor) -> Tensor:
    """`x [B,T,...]` gathered along T by `index [B,T]`."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def put_back(x: Tensor, slot: Tensor, mask: Tensor) -> Tensor:
    """`x [B,T,...]` of compacted rows where its tokens stood, 0 at padding."""
    return take(x, slot).masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - 2)), 0)
