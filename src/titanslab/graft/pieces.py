"""Reading with a grafted model so that it can stop after any piece, and how long a piece may be."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from titanslab.graft.cache import GraftCache
from titanslab.graft.handle import Graft, graft_of
from titanslab.graft.read import TOKENS_AT_ONCE


def longest_piece(graft: Graft) -> int | None:
    """Tokens that one call can read after any others; None = no limit."""
    window = graft.window
    return None if window.size is None or window.limit is None else window.limit - window.kept


def piece_of(graft: Graft, rows: int, wanted: int | None = None) -> int:
    """Tokens of a piece in each of `rows` rows: `wanted`, or about `TOKENS_AT_ONCE` in all, in whole chunks."""
    chunk = graft.config.memory.chunk_size
    size = max(1, TOKENS_AT_ONCE // rows // chunk) * chunk if wanted is None else wanted
    most = longest_piece(graft)
    return size if most is None else max(1, min(size, most))


def read_pieces(
    model: Any,
    input_ids: Tensor | Iterable[Tensor],
    cache: GraftCache | None = None,
    *,
    piece_size: int | None = None,
    learn: bool | None = None,
    write_scale: float | None = None,
) -> Iterator[GraftCache]:
    """Read tokens and yield the cache after each piece; a yielded cache, and `cache`, are never changed.

    Args:
        model: with a graft.
        input_ids: int64 `[B, T]`, or an iterable of such pieces, of any lengths.
        cache: the state to go on from; None = a new text.
        piece_size: tokens of a row read at once; None = about 1,024 in all rows.
        learn, write_scale: while these tokens are read, see `NeuralMemory.forward`; None = the value of the cache.
    """
    graft = graft_of(model)
    body: Any = graft.decoder.body
    device = next(body.parameters()).device
    cache = graft.cache() if cache is None else cache.fork()
    before = cache.learn, cache.write_scale
    now = before[0] if learn is None else learn, before[1] if write_scale is None else write_scale
    for ids in _cut([input_ids] if isinstance(input_ids, Tensor) else input_ids, graft, piece_size):
        work = cache.fork()
        work.learn, work.write_scale = now
        with torch.no_grad():
            body(input_ids=ids.to(device), use_cache=True, **{graft.decoder.cache_name: work})
        work.learn, work.write_scale = before
        cache = work
        yield work


def _cut(source: Iterable[Tensor], graft: Graft, piece_size: int | None) -> Iterator[Tensor]:
    """The tokens in pieces of one size, the last one shorter."""
    held: Tensor | None = None
    for ids in source:
        held = ids if held is None else torch.cat((held, ids), 1)
        size = piece_of(graft, held.shape[0], piece_size)
        while held.shape[1] >= size:
            yield held[:, :size]
            held = held[:, size:]
    if held is not None and held.shape[1]:
        yield held
