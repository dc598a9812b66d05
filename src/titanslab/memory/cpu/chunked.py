"""The chunk loop as one compiled CPU kernel; `chunked` uses it if a C++ compiler is installed.

It computes the same function as the PyTorch loop in `memory/chunked/loop.py`. One core computes a (batch, head) row and
holds the row's state in its cache. The first CPU call imports this file.
"""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs
from titanslab.memory.cpu.build import LAYERS, SIZES, load
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
_SHAPE = (*SIZES, "hidden", "depth", "chunk", "chunks")
_INTS = (*_SHAPE, "gate_layers", "group", "residual", "inner", "threads", "activation_reals")
_POINTERS = ["q", "k", "v", "gates", "scale", "shift", "index", "resets", "continues", "last", "offset", "activations"]


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
    """Mirrors `struct Arguments` in chunked.cpp, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTS),
        ("grad_clip", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, LAYERS) for name in ("state", "anchor", "initial", "kept")),
        *((name, ctypes.c_void_p) for name in ("y", "loss")),
        *((name, LAYERS) for name in ("end", "running")),
        ("dy", ctypes.c_void_p),
        *((name, LAYERS) for name in ("d_end", "d_running")),
        *((name, ctypes.c_void_p) for name in ("dq", "dk", "dv", "d_gates")),
        *((name, LAYERS) for name in ("d_state", "d_anchor", "d_initial")),
        ("d_norm", ctypes.c_void_p),
    )


def block_size(chunk_size: int) -> int:
    """Tokens per step of the loop: one chunk, or as many short chunks as fit in `BLOCK` tokens."""
    handle = load(torch.float32).handle
    if handle is None or chunk_size > SHORT_CHUNK or chunk_size >= handle.titans_lanes():
        return chunk_size
    return BLOCK // chunk_size * chunk_size


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
    depth, block = len(initial), block_size(chunk_size)
    hidden = initial[0].shape[2] if depth > 1 else 0
    chunks = q.shape[1] // block if schedule is None else schedule.chunks
    arguments = Arguments(*q.shape, hidden, depth, block, chunks, inputs.gates.shape[1], inputs.group, inputs.residual)
    inner = chunk_size if block != chunk_size else 0
    arguments.give(inner=inner, threads=torch.get_num_threads(), grad_clip=inputs.grad_clip)
    arguments.give(q=q, k=inputs.k, v=inputs.v, gates=inputs.gates, initial=initial, anchor=inputs.anchor)
    if inputs.norm:
        arguments.give(scale=inputs.norm[0], shift=inputs.norm[1])
    if schedule is None:
        offset = torch.zeros(q.shape[0], dtype=torch.int64)
        arguments.give(offset=offset, last=offset + (chunks - 1))
        return arguments, offset
    flags = {"resets": schedule.resets.to(torch.uint8), "continues": schedule.continues.to(torch.uint8)}
    index = schedule.tokens.masked_fill(~schedule.real, -1)
    arguments.give(offset=schedule.offset, last=schedule.last, index=index, **flags)
    return arguments, schedule.offset


def run(arguments: Arguments, dtype: torch.dtype, backward: bool) -> None:
    handle = load(dtype).handle
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
    end = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in state]
    running = []
    if schedule is not None or inputs.anchor:
        running = [s.new_empty(s.shape[0], s.shape[1] // 2, s.shape[2]) for s in state]
    groups = -(-arguments.chunks // inputs.group)
    kept = [_held((groups, *s.shape), s.dtype) for s in state]
    arguments.give(state=state, y=y, loss=loss, end=end, running=running, kept=kept)
    shape = None
    if keep and schedule is None:
        shape = kept_activations(q, inputs.initial, inputs.chunk_size, arguments.chunks, inputs.grad_clip)
    if shape is not None:
        kept = [*kept, _held(shape, q.dtype)]
        arguments.give(activations=kept[-1], activation_reals=kept[-1].shape[2])
    run(arguments, q.dtype, backward=False)
    return y, loss, end, running, kept, offset.clone()


def backward(
    inputs: Inputs, kept: list[Tensor], dy: Tensor, d_end: list[Tensor], d_running: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of q, k, v, gates, state, anchor, initial and norm."""
    arguments, _ = prepare(inputs)
    q, initial = inputs.q, inputs.initial
    dq, dk, dv, d_gates = (_filled(x, inputs.schedule) for x in (q, q, q, inputs.gates))
    d_state, d_initial = [torch.empty_like(i) for i in initial], [torch.zeros_like(i) for i in initial]
    d_anchor = [torch.zeros_like(a) for a in inputs.anchor]
    if len(kept) > len(initial):
        arguments.give(activations=kept[-1], activation_reals=kept[-1].shape[2])
    arguments.give(
        kept=kept[: len(initial)], dy=dy, d_end=d_end, d_running=d_running, dq=dq, dk=dk, dv=dv, d_gates=d_gates
    )
    arguments.give(d_state=d_state, d_anchor=d_anchor, d_initial=d_initial)
    d_norm: list[Tensor] = []
    if inputs.norm:
        per_row = q.new_zeros(q.shape[0], q.shape[2], 2, q.shape[3])
        arguments.give(d_norm=per_row)
    run(arguments, q.dtype, backward=True)
    if inputs.norm:
        d_norm = [per_row[:, :, i].sum(0) for i in range(2)]
    return dq, dk, dv, d_gates, d_state, d_anchor, d_initial, d_norm
