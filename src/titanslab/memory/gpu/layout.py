"""Tokens in blocks of whole chunks, as the kernels read them, and the way back."""

from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.rows import Schedule, make_schedule, to_slots


class Layout(NamedTuple):
    """One call's tokens in slots; `R` tokens a block, chunks of C inside it, rows = batch * heads.

    gates: `[3, G, blocks, rows, R]`. fresh: int32 `[blocks, rows]`, blocks that begin a document.
    goes_on: int32 `[rows]`, the first chunk continues the incoming state's. last: int32 `[rows]`, the chunk
    of the row's last token (-1 where none). offset: int64 `[B]`, tokens in the running chunk at the end.
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
    """The kernels read row-major memory, whatever the caller's strides."""
    return [t.contiguous() for t in tensors]


def is_ragged(tokens: int, block: int, offset: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> bool:
    """Known without looking at the data, so that a compiled caller knows it too."""
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
    """Lay out `q, k, v [B,T,H,D]` and `gates [3,G,B,T,H]`.

    A document starts a block, so a reset is never inside one.
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
        # the schedule counts blocks; the end of a row is in the chunk of its last token
        inside = (schedule.offset - 1) % block // chunk_size
        chunk = torch.where(schedule.last < 0, -1, schedule.last * (block // chunk_size) + inside)
        last = chunk.repeat_interleave(heads).int()
        offset = schedule.offset % chunk_size
    q, k, v = contiguous([to_slots(x, schedule, block) for x in (q, k, v)])
    flat = torch.stack([to_slots(g, schedule, block) for g in gates.flatten(0, 1)])
    flat = flat.view(3, gates.shape[1], *flat.shape[1:])
    return Layout(q, k, v, flat, real, schedule, fresh, goes_on, last, offset.clone())
