"""The chunk loop in PyTorch operations: forward, and backward with recomputation, for any device.

Chunks are sequential, everything else is batched. `chunked.py` makes one op of it; on CPUs with a C++ compiler
`native/` does the same in one kernel.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.chunked.equations import AS_WRITTEN, Form, Functions, ReadGradient
from titanslab.memory.chunked.groups import Group, Loop, coefficients_of, flush
from titanslab.memory.chunked.slots import by_row, from_slots, in_slots, to_slots
from titanslab.memory.decay import Decay, Products, decay_backward
from titanslab.memory.rows import Schedule

# chunks whose reads share one batched product
READ_CHUNKS = 16


def block_size(chunk_size: int) -> int:
    """Tokens that the loop takes at once: a chunk."""
    return chunk_size


def kept_activations(*_: Any) -> None:
    """Nothing: backward computes a chunk's activations again."""
    return None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: list[Tensor],
    anchor: list[Tensor],
    initial: list[Tensor],
    norm: list[Tensor],
    schedule: Schedule | None,
    chunk_size: int,
    group: int,
    residual: bool,
    grad_clip: float | None,
    keep: bool,
    functions: Functions = AS_WRITTEN,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """y, loss, end state, end anchor (none where aligned and no state came), kept states, end offset.

    States are kept with or without `keep` (a backward will follow): here they are there anyway.
    """
    form = Form(len(state), residual, bool(norm), grad_clip)
    layout = in_slots(q, k, v, gates, schedule, chunk_size, group)
    loop = Loop(layout, anchor, initial, norm, form, q.shape[2], functions)
    batch = q.shape[0]
    y, losses = torch.empty_like(layout.q), torch.empty_like(layout.gates[0, 0])
    running = [] if schedule is None else [a.clone() for a in anchor or loop.own(state)]
    kept: list[list[Tensor]] = [[] for _ in state]
    for first, last in loop.groups():
        state = flush(state)
        for into, s in zip(kept, state, strict=True):
            into.append(s)
        values, _ = loop.decay(first, last)
        part = loop.run(first, last, state, coefficients_of(values, form.depth))
        for i in range(0, last - first, READ_CHUNKS):
            out, _, _ = functions.read_chunks(*loop.read_arguments(first, last, part, slice(i, i + READ_CHUNKS)))
            y[first:last][i : i + READ_CHUNKS] = out.view(-1, *y.shape[1:])
        losses[first:last] = part.loss
        if schedule is not None:
            for n in range(first, last):
                here = by_row(schedule.last == n, loop.heads)
                own = part.anchor if n == 0 and part.anchor else loop.own([s[n - first] for s in part.state])
                running = [torch.where(here, o, r) for o, r in zip(own, running, strict=True)]
        state = [s[-1] for s in part.state]
    end = torch.zeros(batch, dtype=torch.int64, device=q.device)
    if schedule is not None:
        end = schedule.offset.clone()
        at_start = by_row(end == 0, loop.heads)
        running = [torch.where(at_start, o, r) for o, r in zip(loop.own(state), running, strict=True)]
    elif anchor:
        running = [o.clone() for o in loop.own(state)]
    return (
        from_slots(y, schedule, batch),
        from_slots(losses, schedule, batch),
        [s.clone() for s in state],
        running,
        [torch.stack(s) for s in kept],
        end,
    )


class _Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    state: list[Tensor]
    anchor: list[Tensor]
    initial: list[Tensor]
    norm: list[Tensor]


def backward(
    dy: Tensor,
    d_state: list[Tensor],
    d_running: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    anchor: list[Tensor],
    initial: list[Tensor],
    norm: list[Tensor],
    schedule: Schedule | None,
    kept: list[Tensor],
    chunk_size: int,
    group: int,
    residual: bool,
    grad_clip: float | None,
    functions: Functions = AS_WRITTEN,
) -> _Gradients:
    """Gradients of everything `forward` takes; `d_state`, `d_running` belong to its end state and anchor."""
    form = Form(len(initial), residual, bool(norm), grad_clip)
    layout = in_slots(q, k, v, gates, schedule, chunk_size, group)
    loop = Loop(layout, anchor, initial, norm, form, q.shape[2], functions)
    batch = q.shape[0]
    dy = to_slots(dy, schedule, chunk_size)
    if schedule is not None and layout.real is not None:
        dy = dy * layout.real[..., None]
    dq, dk, dv = torch.empty_like(layout.q), torch.empty_like(layout.k), torch.empty_like(layout.v)
    d_gates = torch.empty_like(layout.gates)
    d_initial = [torch.zeros_like(i) for i in initial]
    d_anchor = [torch.zeros_like(a) for a in anchor]
    d_norm = [torch.zeros(loop.rows, q.shape[3], dtype=q.dtype, device=q.device) for _ in norm]
    d_state = [d.clone() for d in d_state]
    if d_running and schedule is None:
        for d, w, r in zip(d_state, loop.widths, d_running, strict=True):
            d[:, :w] += r
        d_running = []
    elif d_running and schedule is not None:
        at_start = by_row(schedule.offset == 0, loop.heads)
        for d, w, r in zip(d_state, loop.widths, d_running, strict=True):
            d[:, :w] += torch.where(at_start, r, 0)
        d_running = [torch.where(at_start, 0, r) for r in d_running]
        untouched = by_row(schedule.last < 0, loop.heads)
        # rows without a token: the anchor passes through
        for into, r in zip(d_anchor, d_running, strict=False):
            into += torch.where(untouched, r, 0)
    for g, (first, last) in reversed(list(enumerate(loop.groups()))):
        n = last - first
        values, (theta, products, real) = loop.decay(first, last)
        coefficients = coefficients_of(values, form.depth)
        part = loop.run(first, last, [s[g] for s in kept], coefficients)
        reads, grads = _read_backward(loop, first, last, part, dy)
        dq[first:last] = grads.q
        d_ends: list[list[Tensor]] = [[] for _ in range(form.depth)]
        d_mixes: list[list[Tensor]] = [[] for _ in range(form.depth)]
        for i in range(n - 1, -1, -1):
            chunk = first + i
            before = [s[i] for s in part.state]
            goes_on = loop.goes_on(chunk)
            own_anchor = part.anchor if goes_on is not None else loop.own(before)
            dk[chunk], dv[chunk], d_state, d_own, ends, mixes, d_scale, d_shift = functions.write_chunk_backward(
                layout.k[chunk],
                layout.v[chunk],
                before,
                own_anchor,
                [e[i] for e in coefficients.ends],
                [m[i] for m in coefficients.mixes],
                loop.scale,
                loop.shift,
                d_state,
                [x[i] for x in grads.inputs],
                [x[i] for x in grads.slopes],
                [x[i] for x in reads],
                [x[i] for x in grads.products],
                [c[i] for c in coefficients.start],
                [c[i] for c in coefficients.lag],
                form,
            )
            for layer in range(form.depth):
                d_ends[layer].append(ends[layer])
                d_mixes[layer].append(mixes[layer])
            if d_scale is not None and d_shift is not None:
                d_norm[0] += d_scale.sum(1)
                d_norm[1] += d_shift.sum(1)
            if d_running and schedule is not None:
                here = by_row(schedule.last == chunk, loop.heads)
                d_own = [d + torch.where(here, r, 0) for d, r in zip(d_own, d_running, strict=True)]
            for layer, (d, w) in enumerate(zip(d_state, loop.widths, strict=True)):
                if goes_on is None:
                    d[:, :w] += d_own[layer]
                else:
                    d[:, :w] += torch.where(goes_on, 0, d_own[layer])
                    d_anchor[layer] += torch.where(goes_on, d_own[layer], 0)
            fresh = loop.fresh(chunk)
            if fresh is not None:
                for into, d in zip(d_initial, d_state, strict=True):
                    into += torch.where(fresh, d, 0)
                d_state = [torch.where(fresh, 0, d) for d in d_state]
        d_state = flush(d_state)
        if grads.scale is not None and grads.shift is not None:
            d_norm[0] += grads.scale
            d_norm[1] += grads.shift
        d_ends_all = [torch.stack(d[::-1]) for d in d_ends]
        d_mixes_all = [torch.stack(d[::-1]) for d in d_mixes]
        d_gates[:, :, first:last] = _gate_gradients(grads, d_ends_all, d_mixes_all, theta, products, real)
    d_gates = torch.stack([from_slots(x, schedule, batch) for x in d_gates.flatten(0, 1)])
    return _Gradients(
        from_slots(dq, schedule, batch),
        from_slots(dk, schedule, batch),
        from_slots(dv, schedule, batch),
        d_gates.view(gates.shape),
        d_state,
        d_anchor,
        d_initial,
        [d.view(batch, -1, d.shape[1]).sum(0) for d in d_norm],
    )


def _read_backward(loop: Loop, first: int, last: int, group: Group, dy: Tensor) -> tuple[list[Tensor], ReadGradient]:
    """Backward of a group's reads, in parts; tensors come back as `[n, rows, ...]`."""
    n, rows, depth = last - first, loop.rows, loop.form.depth
    parts, all_reads = [], []
    for i in range(0, n, READ_CHUNKS):
        part = slice(i, i + READ_CHUNKS)
        arguments = loop.read_arguments(first, last, group, part)
        grads, reads = loop.functions.read_chunks_backward(dy[first:last][part].flatten(0, 1), *arguments)
        parts.append(grads)
        all_reads.append(reads)

    def join(tensors: list[Tensor]) -> Tensor:
        tensors = [t.view(-1, rows, *t.shape[1:]) for t in tensors]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    fields: list = [join([p.q for p in parts])]
    for name in ("inputs", "slopes", "products", "start", "lag", "mix"):
        fields.append([join([getattr(p, name)[layer] for p in parts]) for layer in range(depth)])
    for name in ("scale", "shift"):
        values = [getattr(p, name) for p in parts]
        fields.append(None if values[0] is None else join(values).sum((0, 2)))
    return [join([r[layer] for r in all_reads]) for layer in range(depth)], ReadGradient(*fields)


def _gather_layers(parts: list[Tensor], shared: bool) -> Tensor:
    """Gradients by layer -> `[G, ...]`, summed where the layers share their gates."""
    stacked = torch.stack(parts)
    return stacked.sum(0, keepdim=True) if shared else stacked


def _gate_gradients(
    grads: ReadGradient,
    d_ends: list[Tensor],
    d_mixes: list[Tensor],
    theta: Tensor,
    products: Products,
    real: Tensor | None,
) -> Tensor:
    """Gradients of theta, eta, alpha, stacked: `[3, G, n, rows, C]`."""
    shared = theta.shape[0] == 1
    start, lag = _gather_layers(grads.start, shared), _gather_layers(grads.lag, shared)
    mix = _gather_layers(grads.mix, shared)
    ends, mixes = _gather_layers(d_ends, shared), _gather_layers(d_mixes, shared)
    # the chunk's end is its last row
    start[..., -1] += ends[..., 0]
    lag[..., -1] += ends[..., 1]
    mix[..., -1, :] += mixes[..., 0]
    grad = Decay(start, lag, mix, ends[..., 2], mixes[..., 1])
    return torch.stack(decay_backward(grad, theta, products, real))
