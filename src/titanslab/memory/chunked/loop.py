"""The chunk loop in PyTorch operations: forward, and backward with recomputation, for any device.

Chunks are sequential, everything else is batched. `chunked/op.py` makes one op of it; on CPUs with a C++ compiler
`cpu/chunked.py` does the same in one kernel. docs/exact_form.md derives the equations.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs
from titanslab.memory.chunked.equations import AS_WRITTEN, Chunk, Form, Functions, ReadGradient, Reads, ReadShare, Write
from titanslab.memory.decay import Decay, Products, decay, decay_backward
from titanslab.memory.rows import by_row, from_slots, to_slots

# chunks whose reads share one batched product
READ_CHUNKS = 16


def block_size(chunk_size: int) -> int:
    """Tokens that one step of the loop takes: a chunk."""
    return chunk_size


def lane_group(*_: Any) -> int:
    """0: a call with an open chunk has a schedule."""
    return 0


def kept_activations(*_: Any) -> None:
    """None: backward computes the activations of a chunk again."""
    return None


class _Coefficients(NamedTuple):
    """Decays of one group by layer, the same tensors for every layer where the gates are shared."""

    start: list[Tensor]
    lag: list[Tensor]
    mix: list[Tensor]
    ends: list[Tensor]  # [n, rows, 3]
    mixes: list[Tensor]  # [n, rows, C, 2]

    @classmethod
    def of(cls, d: Decay, depth: int) -> "_Coefficients":
        ends = torch.stack([d.start[..., -1], d.lag[..., -1], d.momentum_end], -1)
        mixes = torch.stack([d.mix[..., -1, :], d.momentum_mix], -1)
        layers = ([x[min(layer, x.shape[0] - 1)] for layer in range(depth)] for x in (*d[:3], ends, mixes))
        return cls(*layers)


class _Group(NamedTuple):
    """The writes of one group of `n` chunks, `rows` = batch * heads."""

    state: list[Tensor]  # [n + 1, rows, 2 d_in, d_out]: at each chunk's start, and at the end
    anchor: list[Tensor]  # of the first chunk, where that is not the state's own weights
    inputs: list[Tensor]  # a_0..: [n, rows, C, d]
    slopes: list[Tensor]
    loss: Tensor
    coefficients: _Coefficients


class _Loop:
    """One call of the chunk loop: its tokens in slots, and the writes that forward and backward share."""

    def __init__(self, inputs: Inputs, functions: Functions) -> None:
        self.inputs, self.functions = inputs, functions
        self.schedule, chunk_size = inputs.schedule, inputs.chunk_size
        self.heads = inputs.q.shape[2]
        # [chunks, rows, C, D], and the gates [3, G, chunks, rows, C] with G = 1 or depth
        self.q, self.k, self.v = (to_slots(x, self.schedule, chunk_size) for x in (inputs.q, inputs.k, inputs.v))
        gates = torch.stack([to_slots(g, self.schedule, chunk_size) for g in inputs.gates.flatten(0, 1)])
        self.gates = gates.view(3, inputs.gates.shape[1], *gates.shape[1:])
        self.real = None  # [chunks, rows, C]
        if self.schedule is not None:
            self.real = to_slots(self.schedule.real[:, :, None].expand(-1, -1, self.heads), None, chunk_size)
        self.chunks, self.rows = self.q.shape[:2]
        norm = [n.repeat(self.rows // self.heads, 1)[:, None, :] for n in inputs.norm]
        self.scale: Tensor | None = norm[0] if norm else None
        self.shift: Tensor | None = norm[1] if norm else None
        self.base = [b.repeat(self.rows // self.heads, 1, 1) for b in inputs.base]  # [rows, d_in, d_out]
        self.widths = [w.shape[1] // 2 for w in inputs.initial]
        self.form = Form(len(inputs.initial), inputs.residual, inputs.grad_clip)

    def groups(self) -> list[tuple[int, int]]:
        size = self.inputs.group
        return [(i, min(i + size, self.chunks)) for i in range(0, self.chunks, size)]

    def decay(self, first: int, last: int) -> tuple[Decay, tuple[Tensor, Products, Tensor | None]]:
        theta, eta, alpha = self.gates[:, :, first:last]
        real = None if self.real is None else self.real[first:last]
        values, products = decay(theta, eta, alpha, real)
        return values, (theta, products, real)

    def fresh(self, n: int) -> Tensor | None:
        """Rows in which chunk n begins a document, `[rows, 1, 1]`; None where it does in no row."""
        if self.schedule is None or not self.schedule.has_resets[n]:
            return None
        return by_row(self.schedule.resets[n], self.heads)

    def goes_on(self, n: int) -> Tensor | None:
        """Rows in which chunk n continues the incoming state's chunk, `[rows, 1, 1]`; None where it does in no row."""
        if n > 0 or self.schedule is None or not self.inputs.anchor:
            return None
        return by_row(self.schedule.continues, self.heads)

    def weights(self, state: list[Tensor]) -> list[Tensor]:
        """The whole weights of a state of weights above momentum, with the base from which those of the state count."""
        found = [s[:, :w] for s, w in zip(state, self.widths, strict=True)]
        return [m + b for m, b in zip(found, self.base, strict=True)] if self.base else found

    def chunk(self, n: int, i: int, state: list[Tensor], anchor: list[Tensor], c: _Coefficients) -> Chunk:
        """Chunk n of the call, which is chunk i of its group."""
        ends, mixes = [e[i] for e in c.ends], [m[i] for m in c.mixes]
        return Chunk(self.k[n], self.v[n], state, anchor, ends, mixes, self.scale, self.shift)

    def write(self, first: int, last: int, start: list[Tensor], c: _Coefficients) -> _Group:
        """Write the chunks `first..last` one after the other, from the state `start`."""
        states = [s.new_empty(last - first + 1, *s.shape) for s in start]
        for into, s in zip(states, start, strict=True):
            into[0] = s
        special: list[Tensor] = []
        writes: list[Write] = []
        for i in range(last - first):
            state = [s[i] for s in states]
            fresh = self.fresh(first + i)
            if fresh is not None:
                for s, begin in zip(state, self.inputs.initial, strict=True):
                    torch.where(fresh, begin, s, out=s)
            anchor = self.weights(state)
            goes_on = self.goes_on(first + i)
            if goes_on is not None:
                pairs = zip(self.inputs.anchor, anchor, strict=True)
                special = anchor = [torch.where(goes_on, a, o) for a, o in pairs]
            chunk = self.chunk(first + i, i, state, anchor, c)
            writes.append(self.functions.write_chunk(chunk, [s[i + 1] for s in states], self.form))
        inputs = [torch.stack(layer) for layer in zip(*(w.inputs for w in writes), strict=True)]
        slopes = [torch.stack(layer) for layer in zip(*(w.slopes for w in writes), strict=True)]
        loss = torch.stack([w.loss for w in writes])
        return _Group(states, special, [self.k[first:last], *inputs], slopes, loss, c)

    def reads(self, first: int, last: int, group: _Group, part: slice) -> Reads:
        """The reads of some chunks of a group, with chunks and rows in one dimension."""
        c = group.coefficients

        def flat(tensors: list[Tensor]) -> list[Tensor]:
            return [t[part].flatten(0, 1) for t in tensors]

        count = len(range(*part.indices(last - first)))
        scale, shift = (None if x is None else x.repeat(count, 1, 1) for x in (self.scale, self.shift))
        q, state = self.q[first:last][part].flatten(0, 1), flat([s[:-1] for s in group.state])
        start, lag, mix = flat(c.start), flat(c.lag), flat(c.mix)
        return Reads(q, flat(group.inputs), flat(group.slopes), state, start, lag, mix, scale, shift, self.base)

    def read_backward(self, first: int, last: int, group: _Group, dy: Tensor) -> tuple[list[Tensor], ReadGradient]:
        """Backward of a group's reads, in parts: their layer inputs and gradients, `[n, rows, ...]`."""
        grads, reads = [], []
        for i in range(0, last - first, READ_CHUNKS):
            part = slice(i, i + READ_CHUNKS)
            given = self.reads(first, last, group, part)
            grad, read = self.functions.read_chunks_backward(dy[first:last][part].flatten(0, 1), given, self.form)
            grads.append(grad)
            reads.append(read)

        def join(tensors: list[Tensor]) -> Tensor:
            tensors = [t.view(-1, self.rows, *t.shape[1:]) for t in tensors]
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

        def layers(parts: list[list[Tensor]]) -> list[Tensor]:
            return [join(list(layer)) for layer in zip(*parts, strict=True)]

        def affine(parts: list[Tensor | None]) -> Tensor | None:
            given = [p for p in parts if p is not None]
            return join(given).sum((0, 2)) if given else None

        q, *lists, scale, shift, base = zip(*grads, strict=True)
        inputs, slopes, products, start, lag, mix = (layers(list(parts)) for parts in lists)
        norm = affine(list(scale)), affine(list(shift))
        d_base = [torch.stack(parts).sum(0) for parts in zip(*base, strict=True)]
        return layers(reads), ReadGradient(join(list(q)), inputs, slopes, products, start, lag, mix, *norm, d_base)


def forward(
    inputs: Inputs, state: list[Tensor], keep: bool, functions: Functions = AS_WRITTEN
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Run the loop from `state`.

    Returns:
        y, loss, end state, end anchor (empty where rows are aligned and no state came), kept states, end offset. States
        are kept whether or not a backward will follow (`keep`): the loop has them anyway.
    """
    loop, schedule = _Loop(inputs, functions), inputs.schedule
    batch = inputs.q.shape[0]
    y, losses = torch.empty_like(loop.q), torch.empty_like(loop.gates[0, 0])
    running = [] if schedule is None else [a.clone() for a in inputs.anchor or loop.weights(state)]
    kept: list[list[Tensor]] = [[] for _ in state]
    for first, last in loop.groups():
        state = _flush(state)
        for into, s in zip(kept, state, strict=True):
            into.append(s)
        values, _ = loop.decay(first, last)
        group = loop.write(first, last, state, _Coefficients.of(values, loop.form.depth))
        for i in range(0, last - first, READ_CHUNKS):
            out, _, _ = functions.read_chunks(loop.reads(first, last, group, slice(i, i + READ_CHUNKS)), loop.form)
            y[first:last][i : i + READ_CHUNKS] = out.view(-1, *y.shape[1:])
        losses[first:last] = group.loss
        if schedule is not None:
            for n in range(first, last):
                here = by_row(schedule.last == n, loop.heads)
                at_start = [s[n - first] for s in group.state]
                anchor = group.anchor if n == 0 and group.anchor else loop.weights(at_start)
                running = [torch.where(here, a, r) for a, r in zip(anchor, running, strict=True)]
        state = [s[-1] for s in group.state]
    end = torch.zeros(batch, dtype=torch.int64, device=inputs.q.device)
    if schedule is not None:
        end = schedule.offset.clone()
        at_boundary = by_row(end == 0, loop.heads)
        running = [torch.where(at_boundary, w, r) for w, r in zip(loop.weights(state), running, strict=True)]
    elif inputs.anchor:
        running = [w.clone() for w in loop.weights(state)]
    y, losses = from_slots(y, schedule, batch), from_slots(losses, schedule, batch)
    return y, losses, [s.clone() for s in state], running, [torch.stack(s) for s in kept], end


def backward(
    inputs: Inputs,
    kept: list[Tensor],
    dy: Tensor,
    d_state: list[Tensor],
    d_running: list[Tensor],
    functions: Functions = AS_WRITTEN,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of q, k, v, gates, state, anchor, initial, and norm with base.

    `d_state` and `d_running` are those of the ends.
    """
    loop, schedule, batch = _Loop(inputs, functions), inputs.schedule, inputs.q.shape[0]
    form = loop.form
    dy = to_slots(dy, schedule, inputs.chunk_size)
    if loop.real is not None:
        dy = dy * loop.real[..., None]
    dq, dk, dv = torch.empty_like(loop.q), torch.empty_like(loop.k), torch.empty_like(loop.v)
    d_gates = torch.empty_like(loop.gates)
    d_initial = [torch.zeros_like(i) for i in inputs.initial]
    d_anchor = [torch.zeros_like(a) for a in inputs.anchor]
    d_norm = [dy.new_zeros(loop.rows, dy.shape[-1]) for _ in inputs.norm]
    d_base = [torch.zeros_like(b) for b in loop.base]
    d_state = [d.clone() for d in d_state]
    if d_running and schedule is None:
        for layer, (d, w, r) in enumerate(zip(d_state, loop.widths, d_running, strict=True)):
            d[:, :w] += r
            if d_base:
                d_base[layer] += r
        d_running = []
    elif d_running and schedule is not None:
        at_boundary = by_row(schedule.offset == 0, loop.heads)
        for layer, (d, w, r) in enumerate(zip(d_state, loop.widths, d_running, strict=True)):
            d[:, :w] += torch.where(at_boundary, r, 0)
            if d_base:
                d_base[layer] += torch.where(at_boundary, r, 0)
        d_running = [torch.where(at_boundary, 0, r) for r in d_running]
        untouched = by_row(schedule.last < 0, loop.heads)
        # a row without a token returns the anchor it was given
        for into, r in zip(d_anchor, d_running, strict=False):
            into += torch.where(untouched, r, 0)
    for g, (first, last) in reversed(list(enumerate(loop.groups()))):
        values, (theta, products, real) = loop.decay(first, last)
        c = _Coefficients.of(values, form.depth)
        group = loop.write(first, last, [s[g] for s in kept], c)
        reads, grads = loop.read_backward(first, last, group, dy)
        dq[first:last] = grads.q
        by_layer = (grads.inputs, grads.slopes, reads, grads.products, c.start, c.lag)
        d_ends: list[list[Tensor]] = [[] for _ in range(form.depth)]
        d_mixes: list[list[Tensor]] = [[] for _ in range(form.depth)]
        for i in range(last - first - 1, -1, -1):
            n = first + i
            before = [s[i] for s in group.state]
            goes_on = loop.goes_on(n)
            anchor = group.anchor if goes_on is not None else loop.weights(before)
            share = ReadShare(*([x[i] for x in tensors] for tensors in by_layer))
            grad = functions.write_chunk_backward(loop.chunk(n, i, before, anchor, c), d_state, share, form)
            dk[n], dv[n], d_state, d_own = grad.k, grad.v, grad.state, grad.anchor
            for layer in range(form.depth):
                d_ends[layer].append(grad.ends[layer])
                d_mixes[layer].append(grad.mixes[layer])
            if grad.scale is not None and grad.shift is not None:
                d_norm[0] += grad.scale.sum(1)
                d_norm[1] += grad.shift.sum(1)
            if d_running and schedule is not None:
                here = by_row(schedule.last == n, loop.heads)
                d_own = [d + torch.where(here, r, 0) for d, r in zip(d_own, d_running, strict=True)]
            for layer, (d, w) in enumerate(zip(d_state, loop.widths, strict=True)):
                own = d_own[layer] if goes_on is None else torch.where(goes_on, 0, d_own[layer])
                d[:, :w] += own
                if d_base:
                    d_base[layer] += own
                if goes_on is not None:
                    d_anchor[layer] += torch.where(goes_on, d_own[layer], 0)
            fresh = loop.fresh(n)
            if fresh is not None:
                for into, d in zip(d_initial, d_state, strict=True):
                    into += torch.where(fresh, d, 0)
                d_state = [torch.where(fresh, 0, d) for d in d_state]
        d_state = _flush(d_state)
        if grads.scale is not None and grads.shift is not None:
            d_norm[0] += grads.scale
            d_norm[1] += grads.shift
        for into, d in zip(d_base, grads.base, strict=True):
            into += d
        ends, mixes = ([torch.stack(d[::-1]) for d in layers] for layers in (d_ends, d_mixes))
        d_gates[:, :, first:last] = _gate_gradients(grads, ends, mixes, theta, products, real)
    dq, dk, dv = (from_slots(d, schedule, batch) for d in (dq, dk, dv))
    d_gates = torch.stack([from_slots(x, schedule, batch) for x in d_gates.flatten(0, 1)]).view(inputs.gates.shape)
    d_norm = [d.view(batch, -1, *d.shape[1:]).sum(0) for d in (*d_norm, *d_base)]
    return dq, dk, dv, d_gates, d_state, d_anchor, d_initial, d_norm


def _flush(state: list[Tensor]) -> list[Tensor]:
    """Set numbers below 1e-30 to zero: denormal numbers slow CPU matrix products down several times."""
    if state[0].device.type != "cpu" or state[0].dtype != torch.float32:
        return state
    return [torch.where(s.abs() < 1e-30, 0, s) for s in state]


def _gate_gradients(
    grads: ReadGradient,
    d_ends: list[Tensor],
    d_mixes: list[Tensor],
    theta: Tensor,
    products: Products,
    real: Tensor | None,
) -> Tensor:
    """Gradients of theta, eta and alpha, `[3, G, n, rows, C]`."""

    def by_gates(layers: list[Tensor]) -> Tensor:
        stacked = torch.stack(layers)
        return stacked.sum(0, keepdim=True) if theta.shape[0] == 1 else stacked  # layers may share their gates

    start, lag, mix, ends, mixes = (by_gates(x) for x in (grads.start, grads.lag, grads.mix, d_ends, d_mixes))
    # the decays over the whole chunk are the last row of the decays up to each token
    start[..., -1] += ends[..., 0]
    lag[..., -1] += ends[..., 1]
    mix[..., -1, :] += mixes[..., 0]
    return torch.stack(decay_backward(Decay(start, lag, mix, ends[..., 2], mixes[..., 1]), theta, products, real))
