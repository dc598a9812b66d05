"""Which token goes into which slot of which chunk, where rows have padding, documents or different offsets."""

from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.padding import only, take


class Schedule(NamedTuple):
    """Chunks of a ragged batch, or blocks of several; `chunks` is the most any row needs, C the slots of each.

    tokens: int64 `[B, chunks * C]`, the token in each slot (0 where none).
    real: bool `[B, chunks * C]`, slots that hold a token.
    slot: int64 `[B, T]`, the slot of each token (0 for padding); placed: bool `[B, T]`, tokens that have one.
    resets: bool `[chunks, B]`, chunks that begin a document. has_resets: per chunk, any row does.
    continues: bool `[B]`, the first chunk goes on with the chunk that the incoming state had begun.
    last: int64 `[B]`, the last one that holds a token of the row, -1 where none does.
    offset: int64 `[B]`, tokens in the running chunk at the end; where there are some, `last` begins with that chunk.
    """

    chunks: int
    tokens: Tensor
    real: Tensor
    slot: Tensor
    placed: Tensor
    resets: Tensor
    has_resets: list[bool]
    continues: Tensor
    last: Tensor
    offset: Tensor


def fitting_chunk(chunk_size: int, tokens: int, offset: Tensor | None) -> int:
    """A smaller chunk size for a call that ends within its first chunk, so that the work grows with the tokens."""
    known = offset is None or (offset.device.type == "cpu" and offset.numel() > 0 and tokens < chunk_size)
    if torch.compiler.is_compiling() or not known:
        return chunk_size
    end = tokens if offset is None else tokens + int(offset.max())
    return min(chunk_size, 1 << end.bit_length())


def count_blocks(tokens: int, chunk_size: int, block: int) -> int:
    """The number of blocks that `make_schedule` makes for a call without state, padding and documents."""
    # divisions alone: in a traced call the length may be a symbol
    rest = tokens % block
    running = rest % chunk_size  # has a block of its own
    return tokens // block + -(-(rest - running) // block) + -(-running // chunk_size)


def make_schedule(
    tokens: int, chunk_size: int, offset: Tensor, mask: Tensor | None, reset: Tensor | None, block: int | None = None
) -> Schedule:
    """Lay out `tokens` per row; `offset [B]`, `mask` and `reset` `[B, T]` as in `neural_memory`.

    `block`: slots that are taken at once, a multiple of `chunk_size` and by default that.
    """
    block = block or chunk_size
    device, rows = offset.device, offset.shape[0]
    real = torch.ones(rows, tokens, dtype=torch.bool, device=device) if mask is None else mask
    fresh = torch.zeros_like(real) if reset is None else reset & real
    # place of each token in its document, counting the state's open chunk as part of the first
    order = real.cumsum(1) - 1
    first_of_doc = torch.where(fresh, order, -1).cummax(1).values
    place = torch.where(first_of_doc >= 0, order - first_of_doc, order + offset[:, None])
    newest = torch.where(real, torch.arange(tokens, device=device), -1).amax(1)
    after = place.gather(1, newest.clamp_min(0)[:, None]) + 1
    running = after % chunk_size
    # a running chunk in the middle of a block gets one of its own: the state at its start is wanted
    apart = real & (order >= order[:, -1:] + 1 - running) & ((after - running) % block > 0)
    opens = real & (place % block == 0)
    continues = (offset > 0) & ~((fresh & (order == 0)).any(1)) & real.any(1)
    chunk = opens.cumsum(1) - 1 + continues[:, None].long() + apart.long()
    chunks = max(1, int(torch.where(real, chunk, 0).max()) + 1)
    within = torch.where(apart, place - (after - running), place % block)
    slot = torch.where(real, chunk * block + within, chunks * block)
    index = torch.zeros(rows, chunks * block + 1, dtype=torch.int64, device=device)
    index.scatter_(1, slot, torch.arange(tokens, device=device).expand(rows, tokens))
    filled = torch.zeros(rows, chunks * block + 1, dtype=torch.bool, device=device)
    filled.scatter_(1, slot, True)
    resets = torch.zeros(rows, chunks + 1, dtype=torch.bool, device=device)
    resets.scatter_(1, torch.where(fresh, chunk, chunks), True)
    resets = resets[:, :chunks].T.contiguous()
    last = torch.where(real, chunk, -1).amax(1)
    return Schedule(
        chunks,
        index[:, :-1],
        filled[:, :-1],
        torch.where(real, slot, 0),
        real,
        resets,
        resets.any(1).tolist(),
        continues,
        last,
        torch.where(newest >= 0, running[:, 0], offset),
    )


def to_slots(x: Tensor, schedule: Schedule | None, chunk_size: int) -> Tensor:
    """`[B,T,H,...]` -> `[chunks, B*H, C, ...]`."""
    if schedule is not None:
        x = take(x, schedule.tokens)
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
    return only(take(x, schedule.slot), schedule.placed)


def by_row(x: Tensor, heads: int) -> Tensor:
    """`[B]` -> `[B*H, 1, 1]`."""
    return x.repeat_interleave(heads)[:, None, None]
