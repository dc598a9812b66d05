"""Rows of a cache that begin a new text while the other rows go on."""

import torch
from torch import Tensor

from titanslab.graft.cache import GraftCache
from titanslab.graft.states import StateLayer
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
    for layer in new.layers:
        if isinstance(layer, StateLayer):
            layer.map(lambda t: where_rows(rows.to(t.device), torch.zeros_like(t), t))
    for place, state in enumerate(new.memories):
        if state is not None:
            memory = graft.memories[place]
            empty, read = memory.empty(count).tensors(), state.tensors()
            parts = {name: where_rows(rows.to(t.device), empty[name].to(t.device), t) for name, t in read.items()}
            new.memories[place] = memory.state_of(parts)
    return new
