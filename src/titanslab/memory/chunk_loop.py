"""The chunk loop in PyTorch operations: forward, and backward with recomputation, for any device.

Chunks are sequential, everything else is batched. `chunked.py` makes one op of it; on CPUs with a C++ compiler
`native/` does the same in one kernel.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.chunk import (
    Form,
    ReadGradient,
    read_chunks,
    read_chunks_backward,
    write_chunk,
    write_chunk_backward,
)
from titanslab.memory.decay import Decay, Products, decay, decay_backward
from titanslab.memory.schedule import Schedule

# chunks whose reads share one batched product
READ_CHUNKS = 16


class _Layout(NamedTuple):
    """Tokens in slots: chunk-major inputs, and what is needed to go back."""

    q: Tensor  # [chunks, B*H, C, D]
    k: Tensor
    v: Tensor
    gates: Tensor  # [3, G, chunks, B*H, C]; G = 1 or depth
    real: Tensor | None  # [chunks, B*H, C]
    schedule: Schedule | None
    group: int


def _to_slots(x: Tensor, schedule: Schedule | None, chunk_size: int) -> Tensor:
    """`[B,T,H,...]` -> `[chunks, B*H, C, ...]`."""
    if schedule is not None:
        index = schedule.tokens.view(*schedule.tokens.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        x = x.gather(1, index)
    batch, tokens, heads, *rest = x.shape
    x = x.reshape(batch, tokens // chunk_size, chunk_size, heads, *rest).transpose(2, 3)
    return x.transpose(0, 1).reshape(-1, batch * heads, chunk_size, *rest)


def _from_slots(x: Tensor, schedule: Schedule | None, batch: int) -> Tensor:
    """Inverse of `_to_slots`; tokens without a slot get 0."""
    chunks, rows, size, *rest = x.shape
    x = x.reshape(chunks, batch, rows // batch, size, *rest).transpose(2, 3).transpose(0, 1)
    x = x.reshape(batch, chunks * size, rows // batch, *rest)
    if schedule is None:
        return x.contiguous()  # a single chunk is a view
    index = schedule.slot.view(*schedule.slot.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    x = x.gather(1, index)
    return x.masked_fill(~schedule.placed.view(*schedule.placed.shape, *[1] * (x.dim() - 2)), 0)


def _layout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    schedule: Schedule | None,
    chunk_size: int,
    group: int,
) -> _Layout:
    # gates come as [3, G, B, T, H]
    flat = torch.stack([_to_slots(g, schedule, chunk_size) for g in gates.flatten(0, 1)])
    real = None
    if schedule is not None:
        real = _to_slots(schedule.real[:, :, None].expand(-1, -1, q.shape[2]), None, chunk_size)
    slots = (_to_slots(q, schedule, chunk_size), _to_slots(k, schedule, chunk_size), _to_slots(v, schedule, chunk_size))
    return _Layout(slots[0], slots[1], slots[2], flat.view(3, gates.shape[1], *flat.shape[1:]), real, schedule, group)


class _Coefficients(NamedTuple):
    """Decay of one group, by layer (the same tensors for every layer where gates are shared)."""

    start: list[Tensor]
    lag: list[Tensor]
    mix: list[Tensor]
    ends: list[Tensor]  # [n, rows, 3]
    mixes: list[Tensor]  # [n, rows, C, 2]


def _spread(x: Tensor, depth: int) -> list[Tensor]:
    return [x[min(layer, x.shape[0] - 1)] for layer in range(depth)]


def _coefficients(d: Decay, depth: int) -> _Coefficients:
    ends = torch.stack([d.start[..., -1], d.lag[..., -1], d.momentum_end], -1)
    mixes = torch.stack([d.mix[..., -1, :], d.momentum_mix], -1)
    return _Coefficients(*(_spread(x, depth) for x in (d.start, d.lag, d.mix, ends, mixes)))


def _gather_layers(parts: list[Tensor], shared: bool) -> Tensor:
    """Gradients by layer -> `[G, ...]`, summed where the layers share their gates."""
    stacked = torch.stack(parts)
    return stacked.sum(0, keepdim=True) if shared else stacked


def _flush(state: list[Tensor]) -> list[Tensor]:
    """Zero what is too small to matter: denormal numbers slow CPU matrix products down several times."""
    if state[0].device.type != "cpu" or state[0].dtype != torch.float32:
        return state
    return [torch.where(s.abs() < 1e-30, 0, s) for s in state]


def _rows(x: Tensor, heads: int) -> Tensor:
    """`[B]` -> `[B*H, 1, 1]`."""
    return x.repeat_interleave(heads)[:, None, None]


class _Group(NamedTuple):
    """One group of chunks as forward leaves it and backward wants it; `n` chunks, `rows` = batch * heads."""

    state: list[Tensor]  # [n + 1, rows, 2 d_in, d_out]: at each chunk's start, and the end
    anchor: list[Tensor]  # of the first chunk, where it is not the state's own weights
    inputs: list[Tensor]  # a_0..: [n, rows, C, d]
    slopes: list[Tensor]
    loss: Tensor
    coefficients: _Coefficients


class _Loop:
    """The chunk loop of one call: what forward and the recomputation in backward share."""

    def __init__(
        self,
        layout: _Layout,
        anchor: list[Tensor],
        initial: list[Tensor],
        norm: list[Tensor],
        form: Form,
        heads: int,
    ) -> None:
        self.layout, self.anchor, self.initial, self.form, self.heads = layout, anchor, initial, form, heads
        self.chunks, self.rows = layout.q.shape[:2]
        self.batch = self.rows // heads
        self.scale: Tensor | None = norm[0].repeat(self.batch, 1)[:, None, :] if norm else None
        self.shift: Tensor | None = norm[1].repeat(self.batch, 1)[:, None, :] if norm else None
        self.widths = [w.shape[1] // 2 for w in initial]

    def groups(self) -> list[tuple[int, int]]:
        return [(i, min(i + self.layout.group, self.chunks)) for i in range(0, self.chunks, self.layout.group)]

    def decay(self, first: int, last: int) -> tuple[Decay, tuple[Tensor, Products, Tensor | None]]:
        theta, eta, alpha = self.layout.gates[:, :, first:last]
        real = None if self.layout.real is None else self.layout.real[first:last]
        values, products = decay(theta, eta, alpha, real)
        return values, (theta, products, real)

    def fresh(self, n: int) -> Tensor | None:
        """Rows whose chunk n begins a document, `[rows, 1, 1]`."""
        schedule = self.layout.schedule
        if schedule is None or not schedule.has_resets[n]:
            return None
        return _rows(schedule.resets[n], self.heads)

    def goes_on(self, n: int) -> Tensor | None:
        """Rows whose chunk n continues the incoming state's chunk, `[rows, 1, 1]`."""
        schedule = self.layout.schedule
        if n > 0 or schedule is None or not self.anchor:
            return None
        return _rows(schedule.continues, self.heads)

    def own(self, state: list[Tensor]) -> list[Tensor]:
        return [s[:, :w] for s, w in zip(state, self.widths, strict=True)]

    def run(self, first: int, last: int, start: list[Tensor], coefficients: _Coefficients) -> _Group:
        """Writes chunks `first..last` from the state `start`."""
        n, layout, form = last - first, self.layout, self.form
        states = [s.new_empty(n + 1, *s.shape) for s in start]
        for into, s in zip(states, start, strict=True):
            into[0] = s
        special: list[Tensor] = []
        writes = []
        for i in range(n):
            state = [s[i] for s in states]
            fresh = self.fresh(first + i)
            if fresh is not None:
                for s, begin in zip(state, self.initial, strict=True):
                    torch.where(fresh, begin, s, out=s)
            anchor = self.own(state)
            goes_on = self.goes_on(first + i)
            if goes_on is not None:
                special = anchor = [torch.where(goes_on, a, o) for a, o in zip(self.anchor, anchor, strict=True)]
            write = write_chunk(
                layout.k[first + i],
                layout.v[first + i],
                state,
                anchor,
                [e[i] for e in coefficients.ends],
                [m[i] for m in coefficients.mixes],
                self.scale,
                self.shift,
                [s[i + 1] for s in states],
                form,
            )
            writes.append(write)
        inputs = [layout.k[first:last]]
        inputs += [torch.stack([w.inputs[layer] for w in writes]) for layer in range(form.depth - 1)]
        slopes = [torch.stack([w.slopes[layer] for w in writes]) for layer in range(form.depth)]
        return _Group(states, special, inputs, slopes, torch.stack([w.loss for w in writes]), coefficients)

    def read_arguments(self, first: int, last: int, group: _Group, part: slice):
        """Arguments of `read_chunks` for some chunks of a group, chunks and rows in one dimension."""
        c = group.coefficients

        def flat(tensors: list[Tensor]) -> list[Tensor]:
            return [t[part].flatten(0, 1) for t in tensors]

        count = len(range(*part.indices(last - first)))
        norm = [None if x is None else x.repeat(count, 1, 1) for x in (self.scale, self.shift)]
        return (
            self.layout.q[first:last][part].flatten(0, 1),
            flat(group.inputs),
            flat(group.slopes),
            flat([s[:-1] for s in group.state]),
            flat(c.start),
            flat(c.lag),
            flat(c.mix),
            *norm,
            self.form,
        )


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
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """y, loss, end state, end anchor (none where aligned and no state came), kept states, end offset.

    States are kept with or without `keep` (a backward will follow): here they are there anyway.
    """
    form = Form(len(state), residual, bool(norm), grad_clip)
    layout = _layout(q, k, v, gates, schedule, chunk_size, group)
    loop = _Loop(layout, anchor, initial, norm, form, q.shape[2])
    batch = q.shape[0]
    y, losses = torch.empty_like(layout.q), torch.empty_like(layout.gates[0, 0])
    running = [] if schedule is None else [a.clone() for a in anchor or loop.own(state)]
    kept: list[list[Tensor]] = [[] for _ in state]
    for first, last in loop.groups():
        state = _flush(state)
        for into, s in zip(kept, state, strict=True):
            into.append(s)
        values, _ = loop.decay(first, last)
        part = loop.run(first, last, state, _coefficients(values, form.depth))
        for i in range(0, last - first, READ_CHUNKS):
            out, _, _ = read_chunks(*loop.read_arguments(first, last, part, slice(i, i + READ_CHUNKS)))
            y[first:last][i : i + READ_CHUNKS] = out.view(-1, *y.shape[1:])
        losses[first:last] = part.loss
        if schedule is not None:
            for n in range(first, last):
                here = _rows(schedule.last == n, loop.heads)
                own = part.anchor if n == 0 and part.anchor else loop.own([s[n - first] for s in part.state])
                running = [torch.where(here, o, r) for o, r in zip(own, running, strict=True)]
        state = [s[-1] for s in part.state]
    end = torch.zeros(batch, dtype=torch.int64, device=q.device)
    if schedule is not None:
        end = schedule.offset.clone()
        at_start = _rows(end == 0, loop.heads)
        running = [torch.where(at_start, o, r) for o, r in zip(loop.own(state), running, strict=True)]
    elif anchor:
        running = [o.clone() for o in loop.own(state)]
    return (
        _from_slots(y, schedule, batch),
        _from_slots(losses, schedule, batch),
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
) -> _Gradients:
    """Gradients of everything `forward` takes; `d_state`, `d_running` belong to its end state and anchor."""
    form = Form(len(initial), residual, bool(norm), grad_clip)
    layout = _layout(q, k, v, gates, schedule, chunk_size, group)
    loop = _Loop(layout, anchor, initial, norm, form, q.shape[2])
    batch = q.shape[0]
    dy = _to_slots(dy, schedule, chunk_size)
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
        at_start = _rows(schedule.offset == 0, loop.heads)
        for d, w, r in zip(d_state, loop.widths, d_running, strict=True):
            d[:, :w] += torch.where(at_start, r, 0)
        d_running = [torch.where(at_start, 0, r) for r in d_running]
        untouched = _rows(schedule.last < 0, loop.heads)
        # rows without a token: the anchor passes through
        for into, r in zip(d_anchor, d_running, strict=False):
            into += torch.where(untouched, r, 0)
    for g, (first, last) in reversed(list(enumerate(loop.groups()))):
        n = last - first
        values, (theta, products, real) = loop.decay(first, last)
        coefficients = _coefficients(values, form.depth)
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
            dk[chunk], dv[chunk], d_state, d_own, ends, mixes, d_scale, d_shift = write_chunk_backward(
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
                here = _rows(schedule.last == chunk, loop.heads)
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
        d_state = _flush(d_state)
        if grads.scale is not None and grads.shift is not None:
            d_norm[0] += grads.scale
            d_norm[1] += grads.shift
        d_ends_all = [torch.stack(d[::-1]) for d in d_ends]
        d_mixes_all = [torch.stack(d[::-1]) for d in d_mixes]
        d_gates[:, :, first:last] = _gate_gradients(grads, d_ends_all, d_mixes_all, theta, products, real)
    d_gates = torch.stack([_from_slots(x, schedule, batch) for x in d_gates.flatten(0, 1)])
    return _Gradients(
        _from_slots(dq, schedule, batch),
        _from_slots(dk, schedule, batch),
        _from_slots(dv, schedule, batch),
        d_gates.view(gates.shape),
        d_state,
        d_anchor,
        d_initial,
        [d.view(batch, -1, d.shape[1]).sum(0) for d in d_norm],
    )


def _read_backward(loop: _Loop, first: int, last: int, group: _Group, dy: Tensor) -> tuple[list[Tensor], ReadGradient]:
    """Backward of a group's reads, in parts; tensors come back as `[n, rows, ...]`."""
    n, rows, depth = last - first, loop.rows, loop.form.depth
    parts, all_reads = [], []
    for i in range(0, n, READ_CHUNKS):
        part = slice(i, i + READ_CHUNKS)
        arguments = loop.read_arguments(first, last, group, part)
        grads, reads = read_chunks_backward(dy[first:last][part].flatten(0, 1), *arguments)
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
