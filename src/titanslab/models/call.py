"""Where each token of a call stands: padding, documents, positions, segments; shared by all blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from titanslab.layers.rotary import rotary_tables
from titanslab.models.config import TitansConfig


@dataclass(frozen=True)
class Steps:
    """A call's tokens laid out as `[B, count * size]` for MAC, which walks through them in `count` steps.

    A step holds at most `segment_len` tokens of a row, the real ones first, and no segment begins inside it other
    than with a document. It may hold the ends and beginnings of several documents.

    Args:
        token: int64 `[B, count * size]`, the call's column for each slot.
        slot: int64 `[B, T]`, the inverse.
        mask: bool `[B, count * size]`, slots that hold a token.
        reset: bool `[B, count * size]`, first tokens of documents; None where the call has none.
        filled: int64 `[B, count]`, tokens the running segment held before the step.
        fresh: bool `[B, count]`, steps that begin with a segment of a document that goes on.
    """

    count: int
    size: int
    token: Tensor
    slot: Tensor
    mask: Tensor
    reset: Tensor | None
    filled: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Layout:
    """Facts about a call's tokens that every block needs; a None says that the plain case holds.

    Args:
        lengths: int64 `[B]`, real tokens of each row, which come first; None = all.
        mask: bool `[B, T]`, the same as a mask.
        reset: bool `[B, T]`, first tokens of documents, other than the row's first of all.
        documents: int64 `[B, T]`, index of the document in this call, 0 for the one that was running.
        start: int64 `[B]`, tokens of the running document before this call; None without a cache.
        rotary: cosines and sines `[B or 1, T, D/2]` of the positions (in MAC: within segments); None in LMM.
        steps: MAC's walk where rows do not simply split every `segment_len` columns; None where they do.
        end: int64 `[B]`, tokens of the then running document after this call.
        learn, write_scale: whether and how strongly the memories write.
    """

    lengths: Tensor | None
    mask: Tensor | None
    reset: Tensor | None
    documents: Tensor | None
    start: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    steps: Steps | None
    end: Tensor
    learn: bool = True
    write_scale: float = 1.0


def make_layout(
    config: TitansConfig,
    batch: int,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    start: Tensor | None = None,
    learn: bool = True,
    write_scale: float = 1.0,
) -> Layout:
    """Work out a `Layout` from what is known of the call; shapes as there."""
    column = torch.arange(tokens, device=device)
    mask = None if lengths is None else column < lengths[:, None]
    if reset is not None and mask is not None:
        reset = reset & mask
    documents = None if reset is None else reset.cumsum(1)
    position = column[None] if start is None else start[:, None] + column
    if reset is not None:
        latest = torch.where(reset, column, -1).cummax(1).values
        position = torch.where(latest >= 0, column - latest, position)
    if lengths is None:
        end = (position[:, -1] + 1).expand(batch) if tokens else torch.zeros(batch, dtype=torch.int64, device=device)
    else:
        before = torch.zeros_like(lengths) if start is None else start
        last = position.expand(batch, -1).gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
        end = torch.where(lengths > 0, last + 1, before)
    steps = None
    if config.variant == "mac":
        if mask is not None or reset is not None or not _aligned(start, tokens, config.segment_len):
            steps = _make_steps(config.segment_len, position.expand(batch, -1), mask, reset)
        position = position % config.segment_len
    rotary = None
    if config.variant != "lmm":
        rotary = rotary_tables(position, config.head_dim, config.rotary_base, dtype)
    return Layout(lengths, mask, reset, documents, start, rotary, steps, end, learn, write_scale)


def _aligned(start: Tensor | None, tokens: int, segment_len: int) -> bool:
    """Whether every row's call begins with a segment, as reading in pieces of whole segments does."""
    if start is None:
        return True
    if tokens == 1 or torch.compiler.is_compiling():
        return False  # a decode step does not wait for the device
    return not bool((start % segment_len).any())


def _make_steps(segment_len: int, position: Tensor, mask: Tensor | None, reset: Tensor | None) -> Steps:
    """Cut each row where a segment begins within a document, and wherever `segment_len` tokens are full."""
    batch, tokens = position.shape
    column = torch.arange(tokens, device=position.device).expand(batch, tokens)
    if mask is None:
        mask = torch.ones_like(position, dtype=torch.bool)
    begins = (position % segment_len == 0) & (position > 0)
    latest = torch.where(begins, column, 0).cummax(1).values
    cuts = (column - latest) % segment_len == 0
    index = cuts.cumsum(1) - 1
    place = (column - latest) % segment_len
    if tokens == 1:
        count = size = 1  # a decode step, without waiting for the device
    else:
        used = torch.stack((index.masked_fill(~mask, 0).max(), place.masked_fill(~mask, 0).max())).tolist()
        count, size = used[0] + 1, used[1] + 1
    # padding goes to a slot past the end, which is cut off
    slot = torch.where(mask, index * size + place, count * size)
    token = torch.zeros(batch, count * size + 1, dtype=torch.int64, device=position.device).scatter(1, slot, column)
    held = torch.zeros_like(token, dtype=torch.bool).scatter(1, slot, mask)[:, :-1]
    token = token[:, :-1]
    heads = token.view(batch, count, size)[:, :, 0]
    alive = held.view(batch, count, size)[:, :, 0]
    return Steps(
        count,
        size,
        token,
        slot.clamp(max=count * size - 1),
        held,
        None if reset is None else reset.gather(1, token) & held,
        torch.where(alive, position.gather(1, heads) % segment_len, 0),
        begins.gather(1, heads) & alive,
    )
