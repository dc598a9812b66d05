"""Tokens laid out in chunks: `[B,T,H,...]` as `[chunks, B*H, C, ...]` and back."""

from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.rows import Schedule


class Layout(NamedTuple):
    """Tokens in slots: chunk-major inputs, and what is needed to go back."""

    q: Tensor  # [chunks, B*H, C, D]
    k: Tensor
    v: Tensor
    gates: Tensor  # [3, G, chunks, B*H, C]; G = 1 or depth
    real: Tensor | None  # [chunks, B*H, C]
    schedule: Schedule | None
    group: int


def to_slots(x: Tensor, schedule: Schedule | None, chunk_size: int) -> Tensor:
    """`[B,T,H,...]` -> `[chunks, B*H, C, ...]`."""
    if schedule is not None:
        index = schedule.tokens.view(*schedule.tokens.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        x = x.gather(1, index)
    batch, tokens, heads, *rest = x.shape
    x = x.reshape(batch, tokens // chunk_size, chunk_size, heads, *rest).transpose(2, 3)
    return x.transpose(0, 1).reshape(-1, batch * heads, chunk_size, *rest)


def from_slots(x: Tensor, schedule: Schedule | None, batch: int) -> Tensor:
    """Inverse of `to_slots`; tokens without a slot get 0."""
    chunks, rows, size, *rest = x.shape
    x = x.reshape(chunks, batch, rows // batch, size, *rest).transpose(2, 3).transpose(0, 1)
    x = x.reshape(batch, chunks * size, rows // batch, *rest)
    if schedule is None:
        return x.contiguous()  # a single chunk is a view
    index = schedule.slot.view(*schedule.slot.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    x = x.gather(1, index)
    return x.masked_fill(~schedule.placed.view(*schedule.placed.shape, *[1] * (x.dim() - 2)), 0)


def in_slots(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    schedule: Schedule | None,
    chunk_size: int,
    group: int,
) -> Layout:
    # gates come as [3, G, B, T, H]
    flat = torch.stack([to_slots(g, schedule, chunk_size) for g in gates.flatten(0, 1)])
    real = None
    if schedule is not None:
        real = to_slots(schedule.real[:, :, None].expand(-1, -1, q.shape[2]), None, chunk_size)
    slots = (to_slots(q, schedule, chunk_size), to_slots(k, schedule, chunk_size), to_slots(v, schedule, chunk_size))
    return Layout(slots[0], slots[1], slots[2], flat.view(3, gates.shape[1], *flat.shape[1:]), real, schedule, group)


def by_row(x: Tensor, heads: int) -> Tensor:
    """`[B]` -> `[B*H, 1, 1]`."""
    return x.repeat_interleave(heads)[:, None, None]
