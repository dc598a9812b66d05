"""One call of a model: its rows with padding on the right, and where each token stands; shared by all blocks."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from titanslab.layers.rotary import rotary_tables
from titanslab.memory.padding import Padding, real_tokens
from titanslab.models.config import TitansConfig


@dataclass(frozen=True)
class Steps:
    """The slots `[B, count * size]` through which MAC walks in `count` steps.

    A step holds at most `segment_len` tokens of a row, the real ones first, and no segment begins inside it other
    than with a document. It may hold the ends and beginnings of several documents.

    Args:
        token: int64 `[B, count * size]`, the call's column for each slot.
        slot: int64 `[B, T]`, the inverse.
        mask: bool `[B, count * size]`, slots that hold a token; None where all do.
        reset: bool `[B, count * size]`, first tokens of documents; None where the call has none.
        filled: int64 `[B, count]`, tokens the running segment held before the step.
        fresh: bool `[B, count]`, steps that begin with a segment of a document that goes on.
    """

    count: int
    size: int
    token: Tensor
    slot: Tensor
    mask: Tensor | None
    reset: Tensor | None
    filled: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Call:
    """Facts about a call's tokens that every block needs; a None says that the plain case holds.

    Args:
        lengths: int64 `[B]`, real tokens of each row, which come first; None = all.
        reset: bool `[B, T]`, first tokens of documents, other than the row's first of all.
        documents: int64 `[B, T]`, index of the document in this call, 0 for the one that was running.
        start: int64 `[B]`, tokens of the running document before this call; None without a cache.
        rotary: cosines and sines `[B or 1, T, D/2]` of the positions (in MAC: within segments); None in LMM.
        steps: MAC's walk where rows do not simply split every `segment_len` columns; None where they do.
        end: int64 `[B]`, tokens of the then running document after this call.
        learn, write_scale: whether and how strongly the memories write.
        stats: a dict that receives the stats of a block's memory, as in `TitansOutput`; None = not wanted.
    """

    lengths: Tensor | None
    reset: Tensor | None
    documents: Tensor | None
    start: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    steps: Steps | None
    end: Tensor
    learn: bool = True
    write_scale: float = 1.0
    stats: dict[str, Tensor] | None = field(default=None, compare=False)


def make_call(
    config: TitansConfig,
    x: Tensor,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    start: Tensor | None = None,
    learn: bool = True,
    write_scale: float = 1.0,
    stats: dict[str, Tensor] | None = None,
) -> Call:
    """The `Call` of tokens `x [B, T, hidden]`; other arguments as there."""
    batch, tokens, device = x.shape[0], x.shape[1], x.device
    column = torch.arange(tokens, device=device)
    mask = None if lengths is None else real_tokens(lengths, tokens)
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
        head_dim, base = x.shape[2] // config.num_attention_heads, float((config.rope_parameters or {})["rope_theta"])
        rotary = rotary_tables(position, head_dim, base, x.dtype)
    return Call(lengths, reset, documents, start, rotary, steps, end, learn, write_scale, stats)


def read_mask(attention_mask: Tensor | None, batch: int, tokens: int, past: int) -> Padding | None:
    """The padding of the newest `tokens` columns of an attention mask; None where all of them are real.

    Raises:
        ValueError: a mask that is not `[B, T]` or `[B, past + T]`, or whose numbers are added to scores.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise ValueError(f"attention_mask must be a tensor [{batch}, {tokens}], got {type(attention_mask).__name__}")
    shape = tuple(attention_mask.shape)
    if len(shape) != 2 or shape[0] != batch or shape[1] not in (tokens, past + tokens):
        longer = f" or [{batch}, {past + tokens}] with the past" if past else ""
        raise ValueError(f"attention_mask must have shape [{batch}, {tokens}]{longer}, got {list(shape)}")
    mask = attention_mask[:, -tokens:]
    if mask.is_floating_point() and bool((mask < 0).any()):
        raise ValueError(
            "attention_mask has numbers below 0, as a mask that is added to scores; give one with 1 for tokens and 0 "
            "for padding, as a tokenizer returns it"
        )
    mask = mask.bool()
    if bool(mask.all()):
        return None
    lengths = mask.sum(dim=1)
    if torch.equal(mask, real_tokens(lengths, tokens)):
        return Padding(mask, lengths, None, None)
    return Padding.of(mask)


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
    full = mask is None and tokens == 1
    if mask is None:
        mask = torch.ones_like(position, dtype=torch.bool)
    begins = (position % segment_len == 0) & (position > 0)
    latest = torch.where(begins, column, 0).cummax(1).values
    cuts = (column - latest) % segment_len == 0
    index = cuts.cumsum(1) - 1
    place = (column - latest) % segment_len
    if tokens == 1 or batch == 0:
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
        None if full else held,
        None if reset is None else reset.gather(1, token) & held,
        torch.where(alive, position.gather(1, heads) % segment_len, 0),
        begins.gather(1, heads) & alive,
    )
