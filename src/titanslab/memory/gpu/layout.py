"""Arranges the tokens of a call in blocks of whole chunks, the layout that the kernels read."""

from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.rows import Schedule, make_schedule, to_slots


class Layout(NamedTuple):
    """The tokens of one call in slots: blocks of R tokens, which are whole chunks of C tokens; rows = batch * heads.

    q, k, v: `[blocks, rows, R, D]`. gates: `[3, G, blocks, rows, R]`, theta, eta and alpha; G = 1 or one per layer.
    real: bool `[blocks, rows, R]`, slots that hold a token. It and `schedule` are None if every slot does.
    fresh: int32 `[blocks, rows]`, 1 for a block that begins a document.
    goes_on: int32 `[rows]`, 1 if the row's first chunk continues the chunk that the incoming state had begun.
    last: int32 `[rows]`, index of the chunk with the row's last token, -1 for a row without tokens.
    offset: int64 `[B]`, number of tokens in the unfinished chunk at the end.
    Without a schedule, fresh, goes_on and last are empty.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    real: Tensor | None
    schedule: Schedule | None
    fresh: Tensor
    goes_on: Tensor
    last: Tensor
    offset: Tensor


def contiguous(tensors: list[Tensor]) -> list[Tensor]:
    """Row-major tensors, copied where their strides differ; the kernels assume row-major memory."""
    return [t.contiguous() for t in tensors]


def is_ragged(tokens: int, block: int, offset: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> bool:
    """Whether the rows need a schedule. No value of a tensor is read, so `torch.compile` can evaluate it."""
    return offset is not None or mask is not None or reset is not None or tokens % block != 0


def make_layout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    block: int,
) -> Layout:
    """Arrange `q, k, v [B,T,H,D]` and `gates [3,G,B,T,H]` in blocks of `block` tokens.

    A document begins with a block, so no reset lies inside a block.
    """
    batch, tokens, heads = q.shape[:3]
    schedule = real = None
    offset = torch.zeros(batch, dtype=torch.int64, device=q.device) if offset is None else offset
    fresh = goes_on = last = torch.zeros(0, dtype=torch.int32, device=q.device)
    if is_ragged(tokens, block, offset if offset.any() else None, mask, reset):
        schedule = make_schedule(tokens, block, offset, mask, reset)
        real = to_slots(schedule.real[:, :, None].expand(-1, -1, heads), None, block).contiguous()
        fresh = schedule.resets.repeat_interleave(heads, 1).int().contiguous()
        goes_on = schedule.continues.repeat_interleave(heads).int()
        # `schedule.last` counts blocks, `Layout.last` counts chunks
        inside = (schedule.offset - 1) % block // chunk_size
        chunk = torch.where(schedule.last < 0, -1, schedule.last * (block // chunk_size) + inside)
        last = chunk.repeat_interleave(heads).int()
        offset = schedule.offset % chunk_size
    q, k, v = contiguous([to_slots(x, schedule, block) for x in (q, k, v)])
    flat = torch.stack([to_slots(g, schedule, block) for g in gates.flatten(0, 1)])
    flat = flat.view(3, gates.shape[1], *flat.shape[1:])
    return Layout(q, k, v, flat, real, schedule, fresh, goes_on, last, offset.clone())
