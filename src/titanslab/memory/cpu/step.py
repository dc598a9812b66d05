"""One token of the memory as a compiled CPU kernel, for decoding without gradients."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from titanslab.memory.cpu.build import fields, load
from titanslab.memory.cpu.chunked import Pointers
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Tokens
from titanslab.memory.state import MemoryState, where_rows


class StepArguments(Pointers):
    """`struct StepArguments` of step.cpp."""

    _fields_ = fields("step.cpp", "StepArguments")


def step(
    tokens: Tokens,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState,
    chunk_size: int,
    base: Sequence[Tensor] = (),
) -> tuple[Tensor, MemoryState, Tensor]:
    """Arguments and results as in `recurrent`, for one token. `state` is not changed."""
    q, k, v, gates, *_ = tokens
    batch, _, heads, head_dim = q.shape
    starts = [o == 0 for o in state.offset.tolist()]
    anchor = state.chunk_weights
    if all(starts):
        anchor = state.weights  # every row begins a chunk, so `chunk_weights` are not read
    y, loss = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(batch, 1, heads)
    weights = tuple(torch.empty_like(w, memory_format=torch.contiguous_format) for w in state.weights)
    momentum = tuple(torch.empty_like(w) for w in weights)
    hidden = network.expansion * head_dim if network.depth > 1 else 0
    arguments = StepArguments(batch * heads, heads, head_dim, hidden, network.depth, network.residual)
    arguments.give(threads=torch.get_num_threads(), grad_clip=network.grad_clip, q=q, k=k, v=v, offset=state.offset)
    arguments.give(gates=torch.stack([gate for row in gates for gate in row]))
    arguments.give(scale=params.norm_weight, shift=params.norm_bias)
    arguments.give(weights=state.weights, momentum=state.momentum, anchor=anchor, y=y, loss=loss)
    arguments.give(new_weights=weights, new_momentum=momentum)
    if base:
        arguments.give(base=list(base))
    handle = load(q.dtype, "step").handle
    assert handle is not None
    handle.titans_step(ctypes.byref(arguments))
    offset = (state.offset + 1) % chunk_size
    if any(starts) and not all(starts):
        anchor = tuple(where_rows(state.offset == 0, w, c) for w, c in zip(state.weights, anchor, strict=True))
    ends = [o == 0 for o in offset.tolist()]
    if all(ends):
        anchor = weights
    elif any(ends):
        anchor = tuple(where_rows(offset == 0, w, c) for w, c in zip(weights, anchor, strict=True))
    return y, MemoryState(weights, momentum, anchor, offset), loss
