"""Reading with a grafted model: a text of any length into a cache, piece by piece, without logits and gradients."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from titanslab.graft.cache import GraftCache
from titanslab.memory.config import check_integer

if TYPE_CHECKING:
    from titanslab.graft.handle import Graft

TOKENS_AT_ONCE = 1024  # attention in a window looks at all keys of a piece, so that longer pieces are slower


def read(
    graft: "Graft",
    input_ids: Tensor,
    cache: GraftCache | None,
    attention_mask: Tensor | None,
    piece_size: int | None,
    learn: bool | None,
) -> GraftCache:
    """A cache after the tokens, see `Graft.read`."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
        got = list(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise ValueError(f"input_ids must be integers [B, T], got {got}; one row is ids.unsqueeze(0)")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        shapes = list(input_ids.shape), list(attention_mask.shape)
        raise ValueError(f"attention_mask must have the shape of input_ids, {shapes[0]}, got {shapes[1]}")
    window, body = graft.window, graft.decoder.body
    if piece_size is None:
        room = TOKENS_AT_ONCE
        if window.size is not None and window.limit is not None:
            room = min(room, window.limit - window.kept)
        piece_size = room
    check_integer("piece_size", piece_size, 1)
    work = graft.cache() if cache is None else cache.fork()
    learns, device = work.learn, next(body.parameters()).device
    work.learn = learns if learn is None else learn
    for start in range(0, input_ids.shape[1], piece_size):
        stop = start + piece_size
        given = {graft.decoder.cache_name: work, "use_cache": True}
        if attention_mask is not None:
            given["attention_mask"] = attention_mask[:, start:stop].to(device)
        with torch.no_grad():
            body(input_ids=input_ids[:, start:stop].to(device), **given)
    work.learn = learns
    return work
