"""The chunk loop as one compiled CPU kernel; `chunked` uses it if a C++ compiler is installed.

It computes the same function as the PyTorch loop in `memory/chunked/loop.py`. One core computes a (batch, head) row and
holds the row's state in its cache (chunked.cpp); of small heads it computes as many as a vector has lanes (lanes.cpp).
The first CPU call imports this file.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs
from titanslab.memory.cpu.build import LAYERS, fields, load
from titanslab.memory.cpu.reuse import LARGE_BYTES, lend
from titanslab.memory.rows import Schedule

# Longest chunk that is computed together with others as one block, if it also has fewer tokens than a vector has lanes.
SHORT_CHUNK = 8
# Most tokens in such a block.
BLOCK = 16
# float32 lanes of the widest vector.
LANES = 16
# Shortest chunk whose activations forward keeps; to compute them again in backward takes a fifth of a training step.
KEEP_CHUNK = 32
# Most bytes of the kept activations of one call; above it none are kept.
KEEP_BYTES = 128 << 20
# Where each vector lane computes a memory of its own: longest chunk, most numbers in a layer's state, fewest memories.
LANE_CHUNK, LANE_STATE, LANE_MEMORIES = 8, 2048, 2 * LANES
# Bytes of the states that backward holds at once for a vector of such memories: they fit a core's second cache.
LANE_BYTES = 1 << 20
# Partial sums of the gradient of a start that all rows share.
LANE_SLICES = 16


class Pointers(ctypes.Structure):
    """Base of argument structs, which also keeps the tensors alive whose addresses it holds."""

    def give(self, **values: Tensor | Sequence[Tensor] | float | None) -> None:
        """Set fields: a tensor is made contiguous and stands for its address, None leaves a field at 0."""
        alive = self.__dict__.setdefault("alive", [])
        for name, value in values.items():
            if isinstance(value, Tensor):
                alive.append(value.contiguous())
                value = alive[-1].data_ptr()
            elif isinstance(value, list | tuple):
                parts = [part.contiguous() for part in value]
                alive += parts
                value = LAYERS(*(part.data_ptr() for part in parts))  # type: ignore[assignment]
            if value is not None:
                setattr(self, name, value)


class Arguments(Pointers):
    """`struct Arguments` of arguments.hpp."""

    _fields_ = fields("arguments.hpp", "Arguments")


def block_size(chunk_size: int) -> int:
    """Tokens per step of the loop: one chunk, or as many short chunks as fit in `BLOCK` tokens."""
    handle = load(torch.float32).handle
    if handle is None or chunk_size > SHORT_CHUNK or chunk_size >= handle.titans_lanes():
        return chunk_size
    return BLOCK // chunk_size * chunk_size


def lane_group(memories: int, sizes: list[int], chunk_size: int) -> int:
    """Chunks between two kept states where each vector lane computes a memory of its own; 0 elsewhere.

    Such a call has no schedule: its rows begin at a chunk's start, and their last chunk may be open. `memories` is rows
    times heads, `sizes` the numbers in each layer's state.
    """
    if chunk_size > LANE_CHUNK or max(sizes) > LANE_STATE or memories < LANE_MEMORIES:
        return 0
    return max(1, min(64 // chunk_size, LANE_BYTES // (4 * LANES * sum(sizes))))


def kept_activations(
    q: Tensor, initial: list[Tensor], chunk_size: int, chunks: int, grad_clip: float | None
) -> tuple[int, int, int] | None:
    """Shape of the activations that forward keeps for backward, or None if backward computes them again.

    They are kept for chunks of `KEEP_CHUNK` tokens or more, if all of them fit `KEEP_BYTES`. The shape is
    `[chunks, B * H, reals per chunk]`.
    """
    if chunk_size < KEEP_CHUNK:
        return None
    head_dim, layers = q.shape[3], len(initial)
    hidden = initial[0].shape[2] if layers > 1 else 0
    slots = -(-chunk_size // LANES) * LANES
    width = layers * slots + 3 * (layers - 1) * hidden + (5 if grad_clip else 4) * head_dim + 1
    shape = (chunks, q.shape[0] * q.shape[2], width * slots)
    return shape if math.prod(shape) * q.element_size() <= KEEP_BYTES else None


def prepare(inputs: Inputs) -> tuple[Arguments, Tensor]:
    """The arguments that forward and backward share, and the offsets at the end."""
    q, initial, schedule, chunk_size = inputs.q, inputs.initial, inputs.schedule, inputs.chunk_size
    depth, block = len(initial), chunk_size if inputs.lanes else block_size(chunk_size)
    hidden = initial[0].shape[2] if depth > 1 else 0
    chunks = -(-q.shape[1] // block) if schedule is None else schedule.chunks
    arguments = Arguments(*q.shape, hidden, depth, block, chunks, inputs.gates.shape[1], inputs.group, inputs.residual)
    inner = chunk_size if block != chunk_size else 0
    arguments.give(inner=inner, threads=torch.get_num_threads(), grad_clip=inputs.grad_clip)
    arguments.give(gates=inputs.gates, initial=initial, anchor=inputs.anchor)
    arguments.give(starts=initial[0].shape[0], lanes=int(inputs.lanes))
    if inputs.raw is None:
        arguments.give(q=q, k=inputs.k, v=inputs.v)
    else:
        arguments.give(raw=inputs.raw, convs=inputs.convs, stride=inputs.raw.shape[2], taps=inputs.convs[0].shape[0])
    if inputs.base:
        arguments.give(base=list(inputs.base))
    if inputs.norm:
        arguments.give(scale=inputs.norm[0], shift=inputs.norm[1])
    if schedule is None:
        offset = torch.full((q.shape[0],), q.shape[1] % block)
        arguments.give(offset=offset, last=torch.full_like(offset, chunks - 1))
        return arguments, offset
    flags = {"resets": schedule.resets.to(torch.uint8), "continues": schedule.continues.to(torch.uint8)}
    index = schedule.tokens.masked_fill(~schedule.real, -1)
    arguments.give(offset=schedule.offset, last=schedule.last, index=index, **flags)
    return arguments, schedule.offset


def run(arguments: Arguments, dtype: torch.dtype, backward: bool) -> None:
    """Call the kernel; MemoryError if there is no memory for its workspaces."""
    handle = load(dtype, "lanes" if arguments.lanes else "chunked").handle
    assert handle is not None
    if handle.titans_chunked(ctypes.byref(arguments), int(backward)):
        raise MemoryError("the neural memory's CPU kernel could not allocate its workspace")


def _filled(like: Tensor, schedule: Schedule | None) -> Tensor:
    """Output tensor for the kernel, which writes real tokens alone: with a schedule, padding is 0 from the start."""
    new = torch.empty_like if schedule is None else torch.zeros_like
    return new(like, memory_format=torch.contiguous_format)


def _held(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor that backward will read; large ones come from `reuse.py`."""
    large = math.prod(shape) * dtype.itemsize >= LARGE_BYTES
    return lend(shape, dtype) if large else torch.empty(shape, dtype=dtype)


def forward(
    inputs: Inputs, state: list[Tensor], keep: bool
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """y, inner loss, end state, end anchor, kept states per group, end offset.

    With `keep`, for a backward that follows, the kept tensors may end with the activations (`kept_activations`).
    """
    arguments, offset = prepare(inputs)
    q, schedule = inputs.q, inputs.schedule
    y, loss = _filled(q, schedule), _filled(q[..., 0], schedule)
    shapes = [(q.shape[0] * q.shape[2], *s.shape[1:]) for s in state]
    end, running = [q.new_empty(shape) for shape in shapes], []
    if schedule is not None or inputs.anchor or q.shape[1] % arguments.chunk:
        running = [q.new_empty(rows, width // 2, columns) for rows, width, columns in shapes]
    groups, kept = -(-arguments.chunks // inputs.group), []
    if groups > 1 or not inputs.lanes:
        kept = [_held((groups, *shape), q.dtype) for shape in shapes]
    arguments.give(state=state, y=y, loss=loss, end=end, running=running, kept=kept)
    kept = kept or [s.unsqueeze(0) for s in state]
    shape = None
    if keep and schedule is None:
        shape = kept_activations(q, inputs.initial, inputs.chunk_size, arguments.chunks, inputs.grad_clip)
    if shape is not None:
        kept = [*kept, _held(shape, q.dtype)]
        arguments.give(activations=kept[-1], activation_reals=kept[-1].shape[2])
    run(arguments, q.dtype, backward=False)
    return y, loss, end, running, kept, offset.clone()


def backward(
    inputs: Inputs,
    kept: list[Tensor],
    dy: Tensor,
    d_end: list[Tensor] | None,
    d_running: list[Tensor] | None,
    d_raw: Tensor | None = None,
) -> tuple[Any, ...]:
    """Gradients of q, k, v, gates, state, anchor, initial (empty if no document begins), and norm with base.

    In lanes `d_end` and `d_running` may be None for zeros. Where they make q, k and v, `d_raw` receives the gradient of
    the projections, and those of the convolutions' weights are returned in place of those of q, k and v.
    """
    arguments, _ = prepare(inputs)
    q, initial = inputs.q, inputs.initial
    d_gates = _filled(inputs.gates, inputs.schedule)
    shared = initial[0].shape[0] != q.shape[0] * q.shape[2]
    d_initial = [] if inputs.schedule is None else [torch.zeros_like(i) for i in initial]
    d_state = [i.new_zeros(LANE_SLICES, *i.shape) if shared else torch.empty_like(i) for i in initial]
    d_anchor = [torch.zeros_like(a) for a in inputs.anchor]
    if len(kept) > len(initial):
        arguments.give(activations=kept[-1], activation_reals=kept[-1].shape[2])
    arguments.give(kept=kept[: len(initial)], dy=dy, d_end=d_end, d_running=d_running, d_gates=d_gates)
    if inputs.raw is None:
        d_parts = [_filled(q, inputs.schedule) for _ in range(3)]
        arguments.give(**dict(zip(("dq", "dk", "dv"), d_parts, strict=True)))
    else:
        d_parts = [w.new_zeros(LANE_SLICES, *w.shape) for w in inputs.convs]
        arguments.give(d_raw=d_raw, d_convs=d_parts)
    arguments.give(d_state=d_state, d_anchor=d_anchor, d_initial=d_initial)
    d_norm: list[Tensor] = []
    d_base = [b.new_empty(q.shape[0], *b.shape) for b in inputs.base]
    if d_base:
        arguments.give(d_base=d_base)
    if inputs.norm:
        per_row = q.new_zeros(q.shape[0], q.shape[2], 2, q.shape[3])
        arguments.give(d_norm=per_row)
    run(arguments, q.dtype, backward=True)
    d_parts = d_parts if inputs.raw is None else [d.sum(0) for d in d_parts]
    if inputs.norm:
        d_norm = [per_row[:, :, i].sum(0) for i in range(2)]
    d_norm += [d.sum(0) for d in d_base]
    return *d_parts, d_gates, [d.sum(0) for d in d_state] if shared else d_state, d_anchor, d_initial, d_norm
