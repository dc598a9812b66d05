"""One token of the memory as a compiled CPU kernel, for decoding without gradients."""

import ctypes

import torch
from torch import Tensor

from titanslab.memory.cpu.build import LAYERS, load
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Tokens
from titanslab.memory.state import MemoryState, where_rows

_INTS = ("rows", "heads", "head_dim", "hidden", "depth", "residual", "threads")


class StepArguments(ctypes.Structure):
    """Mirrors `struct StepArguments` in step.cpp, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTS),
        ("grad_clip", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "gates", "scale", "shift", "offset")),
        *((name, LAYERS) for name in ("weights", "momentum", "anchor")),
        *((name, ctypes.c_void_p) for name in ("y", "loss")),
        *((name, LAYERS) for name in ("new_weights", "new_momentum")),
    )


def step(
    tokens: Tokens, network: MemoryNetwork, params: MemoryParams, state: MemoryState, chunk_size: int
) -> tuple[Tensor, MemoryState, Tensor]:
    """Arguments and results as in `recurrent`, for one token. `state` is not changed."""
    q, k, v, gates, *_ = tokens
    batch, _, heads, head_dim = q.shape
    alive: list[Tensor] = []

    def give(tensor: Tensor) -> int:
        alive.append(tensor.contiguous())
        return alive[-1].data_ptr()

    def layers(tensors: tuple[Tensor, ...]) -> ctypes.Array:
        return LAYERS(*(give(t) for t in tensors))

    starts = [o == 0 for o in state.offset.tolist()]
    anchor = state.chunk_weights
    if all(starts):
        anchor = state.weights  # every row begins a chunk, so `chunk_weights` are not read
    y, loss = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(batch, 1, heads)
    weights = tuple(torch.empty_like(w, memory_format=torch.contiguous_format) for w in state.weights)
    momentum = tuple(torch.empty_like(w) for w in weights)
    arguments = StepArguments(
        rows=batch * heads,
        heads=heads,
        head_dim=head_dim,
        hidden=network.expansion * head_dim if network.depth > 1 else 0,
        depth=network.depth,
        residual=network.residual,
        threads=torch.get_num_threads(),
        grad_clip=network.grad_clip or 0.0,
        q=give(q),
        k=give(k),
        v=give(v),
        gates=give(torch.stack([gate for row in gates for gate in row])),
        offset=give(state.offset),
        weights=layers(state.weights),
        momentum=layers(state.momentum),
        anchor=layers(anchor),
        y=y.data_ptr(),
        loss=loss.data_ptr(),
        new_weights=layers(weights),
        new_momentum=layers(momentum),
    )
    if params.norm_weight is not None and params.norm_bias is not None:
        arguments.scale, arguments.shift = give(params.norm_weight), give(params.norm_bias)
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
