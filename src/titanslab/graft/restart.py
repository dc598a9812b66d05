"""Rows of a cache that begin a new text while the other rows go on."""

import torch
from torch import Tensor

from titanslab.graft.cache import GraftCache
from titanslab.memory import NeuralMemoryState
from titanslab.memory.state import where_rows


def restart(cache: GraftCache, rows: Tensor) -> GraftCache:
    """A cache in which some rows have read nothing, so that their memories are M_0 with its graph.

    Args:
        cache: it is not changed.
        rows: bool `[B]`, the rows that begin anew.
    """
    if not bool(rows.any()):
        return cache.fork()
    new = cache.fork()
    graft, slots, count = cache.graft, new.slots, cache.rows
    own = rows.to(slots.index.device)
    for name, value in (("index", -1), ("tail", -1), ("seen", 0), ("position", 0), ("shift", 0)):
        tensor: Tensor = getattr(slots, name)
        tensor = tensor.expand(count, *tensor.shape[1:])
        setattr(slots, name, where_rows(own, torch.full_like(tensor, value), tensor))
    for place, state in enumerate(new.memories):
        if state is not None:
            new.memories[place] = _where(rows, graft.memories[place].initial_state(count), state)
    return new


def _where(rows: Tensor, a: NeuralMemoryState, b: NeuralMemoryState) -> NeuralMemoryState:
    """Rows of `a` where `rows [B]` is true, else of `b`."""
    first, second = a.tensors(), b.tensors()
    own = rows.to(b.memory.offset.device)
    return NeuralMemoryState.from_tensors({name: where_rows(own, first[name], t) for name, t in second.items()})
