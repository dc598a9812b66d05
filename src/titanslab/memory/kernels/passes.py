"""The passes over a sequence: group by group, the state kernel and the read kernel, and their backward.

Imported only where Triton is: the kernels are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.chunk_slots import by_row, from_slots, to_slots
from titanslab.memory.decay import Decay, Products, decay, decay_backward
from titanslab.memory.kernels import plan as planning
from titanslab.memory.kernels.layout import Layout, contiguous, make_layout
from titanslab.memory.kernels.read import read_backward, read_forward
from titanslab.memory.kernels.state import state_forward
from titanslab.memory.kernels.state_backward import state_backward
from titanslab.memory.network import MemoryNetwork


class Coefficients(NamedTuple):
    """Decay of one group: over blocks for the reads, over chunks for the state; G = 1 or depth layers."""

    read: Decay
    read_products: Products
    ends: Tensor  # [G, blocks, rows, R / C, 3]
    mixes: Tensor  # [2, G, blocks, rows, R]
    chunk_products: Products


class Written(NamedTuple):
    """What the state kernel leaves: states in slots by layer, z_1 and d_1, z_L and d_L, the inner loss."""

    states: list[Tensor]
    hidden: Tensor
    slope: Tensor
    z: Tensor
    d: Tensor
    loss: Tensor


class Passes:
    """One call: its shapes and tensors, and how to launch each kernel on a group of blocks."""

    def __init__(
        self,
        layout: Layout,
        anchor: list[Tensor],
        initial: list[Tensor],
        norm: list[Tensor],
        form: MemoryNetwork,
        heads: int,
        chunk_size: int,
        plan: planning.Plan,
    ) -> None:
        self.layout, self.form = layout, form
        self.anchor, self.initial, self.norm = contiguous(anchor), contiguous(initial), contiguous(norm)
        self.heads, self.chunk_size, self.plan = heads, chunk_size, plan
        self.blocks, self.rows, self.block, self.head_dim = layout.q.shape
        self.in_block = self.block // chunk_size
        self.hidden = initial[-1].shape[1] // 2
        self.dtype = initial[0].dtype
        self.precision = planning.operand_precision(layout.q.dtype)
        self.group = planning.group_size(self.block, chunk_size, initial)

    def groups(self) -> list[tuple[int, int]]:
        return [(i, min(i + self.group, self.blocks)) for i in range(0, self.blocks, self.group)]

    def coefficients(self, first: int, last: int) -> Coefficients:
        theta, eta, alpha = self.layout.gates[:, :, first:last]
        real = None if self.layout.real is None else self.layout.real[first:last]
        read, read_products = decay(theta, eta, alpha, real)
        theta, eta, alpha = (x.unflatten(-1, (self.in_block, self.chunk_size)) for x in (theta, eta, alpha))
        real = None if real is None else real.unflatten(-1, (self.in_block, self.chunk_size))
        ends, products = decay(theta, eta, alpha, real)
        return Coefficients(
            Decay(*(x.contiguous() for x in read)),
            read_products,
            torch.stack([ends.start[..., -1], ends.lag[..., -1], ends.momentum_end], -1),
            torch.stack([ends.mix[..., -1, :], ends.momentum_mix]).flatten(-2),
            products,
        )

    def _empty(self, blocks: int, width: int) -> Tensor:
        return self.initial[0].new_empty(blocks, self.rows, self.block, width)

    def _shapes(self, tiles: planning.Tiles) -> dict:
        """Compile-time arguments that every kernel takes."""
        return {
            "H": self.heads, "R": self.block, "D": self.head_dim, "E": self.hidden, "BE": tiles.columns,
            "TD": planning.power_of_two(self.head_dim), "DEPTH": self.form.depth,
            "RESIDUAL": self.form.residual, "NORM": self.form.norm, "PRECISION": self.precision,
            "num_warps": tiles.warps, "num_stages": planning.pipeline_stages(self.head_dim, self.layout.q.dtype),
        }  # fmt: skip

    def _state_shapes(self, tiles: planning.Tiles) -> dict:
        return self._shapes(tiles) | {
            "C": self.chunk_size, "TC": planning.power_of_two(self.chunk_size),
            "CLIP": self.form.grad_clip is not None, "RAGGED": self.layout.schedule is not None,
            "RESIDENT": tiles.resident, "ANCHOR": self.layout.schedule is not None and bool(self.anchor),
        }  # fmt: skip

    def _read_shapes(self, tiles: planning.Tiles, slots: int) -> dict:
        return self._shapes(tiles) | {"SLOTS": slots, "TR": planning.power_of_two(self.block)}

    def write(
        self,
        first: int,
        last: int,
        start: list[Tensor],
        c: Coefficients,
        running: list[Tensor],
        keep_all: bool,
    ) -> Written:
        """The state kernel over blocks `first..last`; a slot per chunk with `keep_all`, else per block."""
        n, layout = last - first, self.layout
        span = 1 if keep_all else self.in_block
        states = [s.new_empty(n * self.in_block // span + 1, *s.shape) for s in start]
        for into, s in zip(states, start, strict=True):
            into[0] = s
        up, down = states[0], states[-1]
        depth1 = self.form.depth == 1
        hidden, slope = (self._empty(n, 0 if depth1 else self.hidden) for _ in range(2))
        z, d = (self._empty(n, self.head_dim) for _ in range(2))
        loss = self._empty(n, 1).squeeze(-1)
        anchor, norm = self.anchor or [down, down], self.norm or [down, down]
        state_forward[(self.rows,)](
            layout.k[first:last], layout.v[first:last], up, down, anchor[0], anchor[-1], self.initial[0],
            self.initial[-1], running[0], running[-1], *norm, c.ends, c.mixes, layout.fresh[first:last],
            layout.goes_on, layout.last, hidden, slope, z, d, loss, n * self.in_block,
            first * self.in_block, self.rows, c.ends.shape[0], self.form.grad_clip or 0.0, SPAN=span,
            **self._state_shapes(self.plan.state),
        )  # fmt: skip
        return Written(states, hidden, slope, z, d, loss)

    def read(self, first: int, last: int, w: Written, c: Coefficients, y: Tensor) -> None:
        """The read kernel; `w` with a slot per block."""
        n, layout = last - first, self.layout
        norm = self.norm or [w.d, w.d]
        read_forward[(self.rows, n)](
            layout.q[first:last], layout.k[first:last], w.states[0], w.states[-1], *norm, c.read.start,
            c.read.lag, c.read.mix, w.hidden, w.slope, w.d, y, self.rows, n, c.ends.shape[0],
            **self._read_shapes(self.plan.read, 1),
        )  # fmt: skip

    def backward(
        self,
        first: int,
        last: int,
        w: Written,
        c: Coefficients,
        dy: Tensor,
        out: "Gradients",
        d_running: list[Tensor],
    ) -> None:
        """Both backward kernels over one group; `w` with a slot per chunk. Adds to and overwrites `out`."""
        n, layout, depth = last - first, self.layout, self.form.depth
        wide = 0 if depth == 1 else self.hidden
        query_hidden, query_slope, d_hidden, d_slope = (self._empty(n, wide) for _ in range(4))
        dz, d_d, dk = (self._empty(n, self.head_dim) for _ in range(3))
        d_start, d_lag = (dz.new_empty(depth, n, self.rows, self.block) for _ in range(2))
        d_mix = dz.new_empty(depth, n, self.rows, self.block, self.block)
        d_scale, d_shift = (dz.new_zeros(n + 1, self.rows, self.head_dim) for _ in range(2))
        up, down = w.states[0], w.states[-1]
        norm = self.norm or [w.d, w.d]
        q, k, v = (x[first:last] for x in (layout.q, layout.k, layout.v))
        read_backward[(self.rows, n)](
            dy, q, k, up, down, norm[0], c.read.start, c.read.lag, c.read.mix, w.hidden, w.slope, w.d,
            out.q[first:last], dk, query_hidden, query_slope, dz, d_hidden, d_slope, d_d, d_start, d_lag,
            d_mix, d_scale, d_shift, self.rows, n, c.ends.shape[0],
            **self._read_shapes(self.plan.read_backward, self.in_block),
        )  # fmt: skip
        anchor, d_running = self.anchor or [down, down], d_running or [down, down]
        d_anchor = out.anchor or [down, down]
        d_ends = dz.new_empty(depth, n, self.rows, self.in_block, 3)
        d_mixes = dz.new_empty(2, depth, n, self.rows, self.block)
        state_backward[(self.rows,)](
            k, v, up, down, anchor[0], anchor[-1], *norm, c.ends, c.mixes, layout.fresh[first:last],
            layout.goes_on, layout.last, w.hidden, w.slope, w.z, w.d, q, query_hidden, query_slope, dz,
            c.read.start, c.read.lag, d_hidden, d_slope, d_d, dk, d_running[0], d_running[-1],
            out.state[0], out.state[-1], d_anchor[0], d_anchor[-1], out.initial[0], out.initial[-1],
            out.k[first:last], out.v[first:last], d_ends, d_mixes, d_scale[n], d_shift[n],
            n * self.in_block, first * self.in_block, self.rows, c.ends.shape[0],
            self.form.grad_clip or 0.0, TR=planning.power_of_two(self.block),
            **self._state_shapes(self.plan.state_backward),
        )  # fmt: skip
        if self.norm:
            out.norm[0].add_(d_scale.sum(0))
            out.norm[1].add_(d_shift.sum(0))
        out.gates[:, :, first:last] = self._gate_gradients(
            first, last, c, Decay(d_start, d_lag, d_mix, d_start[..., 0], d_start), d_ends, d_mixes
        )

    def _gate_gradients(
        self, first: int, last: int, c: Coefficients, read: Decay, d_ends: Tensor, d_mixes: Tensor
    ) -> Tensor:
        """Gradients of theta, eta, alpha `[3, G, n, rows, R]` from those of the coefficients, by layer."""
        theta = self.layout.gates[0, :, first:last]
        real = None if self.layout.real is None else self.layout.real[first:last]
        start, lag, mix = read.start, read.lag, read.mix
        if c.ends.shape[0] < self.form.depth:  # the layers share their gates
            start, lag, mix, d_ends = (x.sum(0, keepdim=True) for x in (start, lag, mix, d_ends))
            d_mixes = d_mixes.sum(1, keepdim=True)
        nothing = torch.zeros_like(start)
        grad = Decay(start, lag, mix, nothing[..., 0], nothing)
        by_read = decay_backward(grad, theta, c.read_products, real)
        # the chunk's end is its last row
        size = (self.in_block, self.chunk_size)
        now, later = d_mixes.unflatten(-1, size)
        at_end = [nothing.unflatten(-1, size).clone() for _ in range(2)]
        at_end[0][..., -1], at_end[1][..., -1] = d_ends[..., 0], d_ends[..., 1]
        full = now.new_zeros(*now.shape, self.chunk_size)
        full[..., -1, :] = now
        grad = Decay(at_end[0], at_end[1], full, d_ends[..., 2], later)
        real = None if real is None else real.unflatten(-1, size)
        by_state = decay_backward(grad, theta.unflatten(-1, size), c.chunk_products, real)
        return torch.stack([a + b.flatten(-2) for a, b in zip(by_read, by_state, strict=True)])


class Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    state: list[Tensor]
    anchor: list[Tensor]
    initial: list[Tensor]
    norm: list[Tensor]


def _own(state: list[Tensor]) -> list[Tensor]:
    return [s[:, : s.shape[1] // 2] for s in state]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    state: list[Tensor],
    anchor: list[Tensor],
    initial: list[Tensor],
    norm: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    form: MemoryNetwork,
    plan: planning.Plan,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """y, loss, end offset, end state, end anchor, kept states (one per group)."""
    layout = make_layout(q, k, v, gates, offset, mask, reset, chunk_size, plan.block)
    passes = Passes(layout, anchor, initial, norm, form, q.shape[2], chunk_size, plan)
    running = [a.clone(memory_format=torch.contiguous_format) for a in anchor or _own(state)]
    y, losses, kept = torch.empty_like(layout.q), torch.empty_like(layout.gates[0, 0]), []
    for first, last in passes.groups():
        kept.append(state)
        c = passes.coefficients(first, last)
        written = passes.write(first, last, state, c, running, keep_all=False)
        passes.read(first, last, written, c, y[first:last])
        losses[first:last] = written.loss
        state = [s[-1].clone() for s in written.states]
    at_start = by_row(layout.offset == 0, q.shape[2])
    running = [torch.where(at_start, o, r) for o, r in zip(_own(state), running, strict=True)]
    y, losses = (from_slots(x, layout.schedule, q.shape[0]) for x in (y, losses))
    return y, losses, layout.offset, state, running, [torch.stack(s) for s in zip(*kept, strict=True)]


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
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    kept: list[Tensor],
    chunk_size: int,
    form: MemoryNetwork,
    plan: planning.Plan,
) -> Gradients:
    """Gradients of everything `forward` took, from those of y, the end state and the end anchor."""
    heads, batch = q.shape[2], q.shape[0]
    layout = make_layout(q, k, v, gates, offset, mask, reset, chunk_size, plan.block)
    passes = Passes(layout, anchor, initial, norm, form, heads, chunk_size, plan)
    dy = to_slots(dy, layout.schedule, plan.block).contiguous()
    if layout.real is not None:
        dy = dy.masked_fill(~layout.real[..., None], 0)
    out = Gradients(
        torch.empty_like(layout.q),
        torch.empty_like(layout.k),
        torch.empty_like(layout.v),
        torch.empty_like(layout.gates),
        [d.clone(memory_format=torch.contiguous_format) for d in d_state],
        [torch.zeros_like(a) for a in passes.anchor],
        [torch.zeros_like(i) for i in passes.initial],
        [norm[0].new_zeros(passes.rows, passes.head_dim) for _ in norm],
    )
    at_start = by_row(layout.offset == 0, heads)
    for into, r in zip(_own(out.state), d_running, strict=True):
        into += torch.where(at_start, r, 0)
    d_running = contiguous([torch.where(at_start, 0, r) for r in d_running])
    if layout.schedule is not None:
        untouched = by_row(layout.schedule.last < 0, heads)
        # rows without a token: the anchor passes through
        for into, r in zip(out.anchor, d_running, strict=False):
            into += torch.where(untouched, r, 0)
    for g, (first, last) in reversed(list(enumerate(passes.groups()))):
        c = passes.coefficients(first, last)
        running = [torch.empty_like(r) for r in d_running]  # not wanted again
        written = passes.write(first, last, [s[g] for s in kept], c, running, keep_all=True)
        passes.backward(first, last, written, c, dy[first:last], out, d_running)
    q, k, v = (from_slots(x, layout.schedule, batch) for x in out[:3])
    flat = torch.stack([from_slots(x, layout.schedule, batch) for x in out.gates.flatten(0, 1)])
    return Gradients(
        q, k, v, flat.view(gates.shape), out.state, out.anchor, out.initial,
        [d.view(batch, heads, -1).sum(0) for d in out.norm],
    )  # fmt: skip
