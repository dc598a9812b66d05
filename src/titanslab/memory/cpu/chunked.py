"""The chunk loop as one compiled CPU kernel; `chunked` uses it if a C++ compiler is installed.

It computes the same function as the PyTorch loop in `memory/chunked/loop.py`. One core computes a (batch, head) row and
holds the row's state in its cache. The first CPU call imports this file.
"""

import ctypes
import math

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs
from titanslab.memory.cpu.build import LAYERS, load
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
_INTS = [
    "batch",
    "tokens",
    "heads",
    "head_dim",
    "hidden",
    "depth",
    "chunk",
    "chunks",
    "gate_layers",
    "group",
    "residual",
    "inner",
    "threads",
    "activation_reals",
]
_POINTERS = ["q", "k", "v", "gates", "scale", "shift", "index", "resets", "continues", "last", "offset", "activations"]


class Arguments(ctypes.Structure):
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


class _Call:
    """The `Arguments` of one call, and references to their tensors, which the kernel reads by address."""

    def __init__(self, q: Tensor, depth: int, hidden: int, chunk_size: int, chunks: int, group: int) -> None:
        batch, tokens, heads, head_dim = q.shape
        self.alive: list[Tensor] = []
        self.arguments = Arguments(
            batch=batch,
            tokens=tokens,
            heads=heads,
            head_dim=head_dim,
            hidden=hidden,
            depth=depth,
            chunk=chunk_size,
            chunks=chunks,
            group=group,
            threads=torch.get_num_threads(),
        )
        self.dtype = q.dtype

    def give(self, **tensors: Tensor | list[Tensor] | None) -> None:
        for name, value in tensors.items():
            if isinstance(value, list):
                value = [v.contiguous() for v in value]
                self.alive += value
                setattr(self.arguments, name, LAYERS(*(v.data_ptr() for v in value)))
            elif value is not None:
                value = value.contiguous()
                self.alive.append(value)
                setattr(self.arguments, name, value.data_ptr())

    def schedule(self, schedule: Schedule | None, offset: Tensor, last: Tensor) -> None:
        self.give(offset=offset, last=last)
        if schedule is None:
            return
        index = schedule.tokens.masked_fill(~schedule.real, -1)
        self.give(index=index, resets=schedule.resets.to(torch.uint8), continues=schedule.continues.to(torch.uint8))

    def give_activations(self, activations: Tensor) -> None:
        self.give(activations=activations)
        self.arguments.activation_reals = activations.shape[2]

    def run(self, backward: bool) -> None:
        handle = load(self.dtype).handle
        assert handle is not None
        if handle.titans_chunked(ctypes.byref(self.arguments), int(backward)):
            raise MemoryError("the neural memory's CPU kernel could not allocate its workspace")


def _prepare(inputs: Inputs) -> tuple[_Call, Tensor]:
    q, initial, schedule, chunk_size = inputs.q, inputs.initial, inputs.schedule, inputs.chunk_size
    hidden = initial[0].shape[2] if len(initial) > 1 else 0
    block = block_size(chunk_size)
    chunks = q.shape[1] // block if schedule is None else schedule.chunks
    call = _Call(q, len(initial), hidden, block, chunks, inputs.group)
    call.arguments.inner = chunk_size if block != chunk_size else 0
    call.arguments.gate_layers, call.arguments.residual = inputs.gates.shape[1], int(inputs.residual)
    call.arguments.grad_clip = inputs.grad_clip or 0.0
    call.give(q=q, k=inputs.k, v=inputs.v, gates=inputs.gates, initial=initial, anchor=inputs.anchor)
    if inputs.norm:
        call.give(scale=inputs.norm[0], shift=inputs.norm[1])
    if schedule is None:
        offset = torch.zeros(q.shape[0], dtype=torch.int64)
        call.schedule(None, offset, offset + (chunks - 1))
    else:
        offset = schedule.offset
        call.schedule(schedule, offset, schedule.last)
    return call, offset


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
    call, offset = _prepare(inputs)
    q, schedule = inputs.q, inputs.schedule
    y, loss = _filled(q, schedule), _filled(q[..., 0], schedule)
    end = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in state]
    running = []
    if schedule is not None or inputs.anchor:
        running = [s.new_empty(s.shape[0], s.shape[1] // 2, s.shape[2]) for s in state]
    groups = -(-call.arguments.chunks // inputs.group)
    kept = [_held((groups, *s.shape), s.dtype) for s in state]
    call.give(state=state, y=y, loss=loss, end=end, running=running, kept=kept)
    shape = None
    if keep and schedule is None:
        shape = kept_activations(q, inputs.initial, inputs.chunk_size, call.arguments.chunks, inputs.grad_clip)
    if shape is not None:
        kept = [*kept, _held(shape, q.dtype)]
        call.give_activations(kept[-1])
    call.run(backward=False)
    return y, loss, end, running, kept, offset.clone()


def backward(
    inputs: Inputs, kept: list[Tensor], dy: Tensor, d_end: list[Tensor], d_running: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of q, k, v, gates, state, anchor, initial and norm."""
    call, _ = _prepare(inputs)
    q, initial = inputs.q, inputs.initial
    dq, dk, dv, d_gates = (_filled(x, inputs.schedule) for x in (q, q, q, inputs.gates))
    d_state, d_initial = [torch.empty_like(i) for i in initial], [torch.zeros_like(i) for i in initial]
    d_anchor = [torch.zeros_like(a) for a in inputs.anchor]
    if len(kept) > len(initial):
        call.give_activations(kept[-1])
    call.give(kept=kept[: len(initial)], dy=dy, d_end=d_end, d_running=d_running, dq=dq, dk=dk, dv=dv, d_gates=d_gates)
    call.give(d_state=d_state, d_anchor=d_anchor, d_initial=d_initial)
    d_norm: list[Tensor] = []
    if inputs.norm:
        per_row = q.new_zeros(q.shape[0], q.shape[2], 2, q.shape[3])
        call.give(d_norm=per_row)
    call.run(backward=True)
    if inputs.norm:
        d_norm = [per_row[:, :, i].sum(0) for i in range(2)]
    return dq, dk, dv, d_gates, d_state, d_anchor, d_initial, d_norm
