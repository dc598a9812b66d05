"""The passes over a sequence: for each group of blocks the state kernel, then the read kernel; and their backward.

The import needs Triton, because the kernels' files import it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titanslab.memory.decay import Decay, Products, decay, decay_backward
from titanslab.memory.gpu import plan as planning
from titanslab.memory.gpu.layout import Layout, contiguous, make_layout
from titanslab.memory.gpu.read import read_backward, read_forward
from titanslab.memory.gpu.state import state_forward
from titanslab.memory.gpu.state_backward import state_backward
from titanslab.memory.network import MemoryNetwork
from titanslab.memory.rows import by_row, from_slots, to_slots


class Coefficients(NamedTuple):
    """Decay coefficients of one group of blocks, `[G, blocks, rows, ...]` with G = 1 or one per memory layer."""

    decay: Decay
    products: Products


class Written(NamedTuple):
    """Results of the state kernel for one group of blocks.

    end: the state after the group, one tensor per layer.
    slots: the state at each block's start, one tensor per layer, in the precision of the products.
    hidden, active, slope: z_1, a_1 and d_1 `[blocks, rows, R, E]`; E = 0 at depth 1.
    z, d: z_L and d_L `[blocks, rows, R, D]`.
    loss: inner loss `[blocks, rows, R]`.
    """

    end: list[Tensor]
    slots: list[Tensor]
    hidden: Tensor
    active: Tensor
    slope: Tensor
    z: Tensor
    d: Tensor
    loss: Tensor


class Passes:
    """The shapes and tensors of one call, and the launch of each kernel on a group of blocks."""

    def __init__(
        self,
        layout: Layout,
        anchor: list[Tensor],
        initial: list[Tensor],
        norm: list[Tensor],
        base: list[Tensor],
        form: MemoryNetwork,
        heads: int,
        chunk_size: int,
        plan: planning.Plan,
    ) -> None:
        self.layout, self.form = layout, form
        self.heads, self.chunk_size, self.plan = heads, chunk_size, plan
        self.blocks, self.rows, self.block, self.head_dim = layout.q.shape
        self.in_block = self.block // chunk_size
        self.hidden = initial[-1].shape[1] // 2
        self.precision = planning.operand_precision(layout.q.dtype)
        # tensors that products alone read are stored in the precision of the products
        self.dtype = torch.bfloat16 if self.precision == "bf16" else initial[0].dtype
        self.anchor, self.initial, self.norm = contiguous(anchor), contiguous(initial), contiguous(norm)
        self.anchor_operands = [a.to(self.dtype) for a in self.anchor]
        self.base = contiguous([b.to(self.dtype) for b in base])
        self.group = planning.group_size(self.block, initial)

    def groups(self) -> list[tuple[int, int]]:
        """For each group, its first block and the first block after it."""
        return [(i, min(i + self.group, self.blocks)) for i in range(0, self.blocks, self.group)]

    def _gates(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        real = self.layout.real
        return self.layout.gates[:, :, first:last], None if real is None else real[first:last]

    def coefficients(self, first: int, last: int) -> Coefficients:
        (theta, eta, alpha), real = self._gates(first, last)
        values, products = decay(theta, eta, alpha, real)
        return Coefficients(Decay(*(x.contiguous() for x in values)), products)

    def _empty(self, blocks: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.initial[0].new_empty(blocks, self.rows, self.block, width, dtype=dtype)

    def _read_shapes(self, tiles: planning.Tiles) -> dict:
        """Compile-time arguments of the read kernels."""
        return {
            "H": self.heads, "R": self.block, "D": self.head_dim, "E": self.hidden, "BE": tiles.columns,
            "TR": planning.power_of_two(self.block), "TD": planning.power_of_two(self.head_dim),
            "DEPTH": self.form.depth, "RESIDUAL": self.form.residual, "NORM": self.form.norm,
            "BASE": bool(self.base), "PRECISION": self.precision, "num_warps": tiles.warps,
            "num_stages": planning.pipeline_stages(self.head_dim, self.layout.q.dtype),
        }  # fmt: skip

    def _state_shapes(self, tiles: planning.Tiles) -> dict:
        return self._read_shapes(tiles) | {
            "C": self.chunk_size, "TC": planning.power_of_two(self.chunk_size),
            "CLIP": self.form.grad_clip is not None, "RAGGED": self.layout.schedule is not None,
            "ANCHOR": self.layout.schedule is not None and bool(self.anchor),
        }  # fmt: skip

    def write(self, first: int, last: int, start: list[Tensor], c: Coefficients, running: list[Tensor]) -> Written:
        """Runs the state kernel on blocks `first` to `last - 1` from state `start`; fills `running`, the end anchor."""
        n, layout = last - first, self.layout
        end = [s.clone(memory_format=torch.contiguous_format) for s in start]
        slots = [s.new_empty(n, *s.shape, dtype=self.dtype) for s in start]
        for into, s in zip(slots, start, strict=True):
            into[0] = s
        up, down = end[0], end[-1]
        wide = 0 if self.form.depth == 1 else self.hidden
        hidden, active, slope = (self._empty(n, wide, dtype) for dtype in (None, self.dtype, self.dtype))
        z, d = (self._empty(n, self.head_dim) for _ in range(2))
        loss = self._empty(n, 1).squeeze(-1)
        anchor, norm = self.anchor_operands or [slots[-1], slots[-1]], self.norm or [down, down]
        base = self.base or [slots[-1], slots[-1]]
        state_forward[(self.rows,)](
            layout.k[first:last], layout.v[first:last], up, down, slots[0], slots[-1], anchor[0], anchor[-1],
            self.initial[0], self.initial[-1], running[0], running[-1], *norm, base[0], base[-1], *c.decay,
            layout.fresh[first:last], layout.goes_on, layout.last, hidden, active, slope, z, d, loss, n, first,
            self.rows, layout.gates.shape[1], self.form.grad_clip or 0.0, **self._state_shapes(self.plan.state),
        )  # fmt: skip
        return Written(end, slots, hidden, active, slope, z, d, loss)

    def read(self, first: int, last: int, w: Written, c: Coefficients, y: Tensor) -> None:
        """Runs the read kernel on the same blocks; fills `y`."""
        n, layout = last - first, self.layout
        norm, base = self.norm or [w.d, w.d], self.base or [w.d, w.d]
        read_forward[(self.rows, n)](
            layout.q[first:last], layout.k[first:last], w.slots[0], w.slots[-1], *norm, base[0], base[-1],
            *c.decay[:3], w.active, w.slope, w.d, y, self.rows, n, layout.gates.shape[1],
            **self._read_shapes(self.plan.read),
        )  # fmt: skip

    def backward(
        self, first: int, last: int, w: Written, c: Coefficients, dy: Tensor, out: "Gradients", d_running: list[Tensor]
    ) -> None:
        """Runs both backward kernels on blocks `first` to `last - 1`.

        `out.state` goes from the gradient at the group's end to that at its start, in place. Gradients of anchor,
        initial and norm are added to `out`; those of q, k, v and gates are stored there for these blocks.
        """
        n, layout, depth = last - first, self.layout, self.form.depth
        wide = 0 if depth == 1 else self.hidden
        query_hidden, query_slope, d_hidden, d_slope = (self._empty(n, wide) for _ in range(4))
        query_dz, dz, d_d, dk = (self._empty(n, self.head_dim) for _ in range(4))
        d_start, d_lag, d_later = (dz.new_empty(depth, n, self.rows, self.block) for _ in range(3))
        d_mix = dz.new_empty(depth, n, self.rows, self.block, self.block)
        d_scale, d_shift = (dz.new_zeros(n + 1, self.rows, self.head_dim) for _ in range(2))
        norm, base = self.norm or [w.d, w.d], self.base or [w.d, w.d]
        q, k, v = (x[first:last] for x in (layout.q, layout.k, layout.v))
        read_backward[(self.rows, n)](
            dy, q, k, w.slots[0], w.slots[-1], norm[0], base[0], base[-1], *c.decay[:3], w.active, w.slope, w.d,
            out.q[first:last], dk, query_hidden, query_slope, query_dz, d_hidden, d_slope, d_d, d_start, d_lag,
            d_mix, d_scale, d_shift, self.rows, n, layout.gates.shape[1],
            **self._read_shapes(self.plan.read_backward),
        )  # fmt: skip
        d_ends = dz.new_empty(depth, n, self.rows, self.in_block, 3)
        d_mixes = dz.new_empty(depth, n, self.rows, self.in_block, self.block)
        if layout.schedule is not None:
            writes = ([dk, d_hidden], [d_slope, d_d]) if depth == 2 else ([dk], [d_d])
            self._through_end_anchor(first, last, w, c, d_running, out.anchor, *writes, d_start, d_lag, d_mix)
        anchor, d_anchor = self.anchor_operands or [w.slots[-1]] * 2, out.anchor or [w.d, w.d]
        state_backward[(self.rows,)](
            k, v, w.slots[0], w.slots[-1], anchor[0], anchor[-1], *norm, base[0], base[-1], *c.decay,
            layout.fresh[first:last], layout.goes_on, layout.last, w.hidden, w.active, w.slope, w.z, w.d, q,
            query_hidden, query_slope, query_dz, d_hidden, d_slope, d_d, dk, dz, d_running[0], d_running[-1],
            out.state[0], out.state[-1], d_anchor[0], d_anchor[-1], out.initial[0], out.initial[-1], out.k[first:last],
            out.v[first:last], d_ends, d_mixes, d_later, d_scale[n], d_shift[n], n, first, self.rows,
            layout.gates.shape[1], self.form.grad_clip or 0.0, **self._state_shapes(self.plan.state_backward),
        )  # fmt: skip
        if self.norm:
            out.norm[0].add_(d_scale.sum(0))
            out.norm[1].add_(d_shift.sum(0))
        if self.base and depth == 2:
            x = F.gelu(query_hidden)
            _through_base(out.base[0], (q, query_slope), (k, d_hidden))
            _through_base(out.base[1], (x, query_dz), (w.active, dz), (d_slope, w.d))
        elif self.base:
            _through_base(out.base[0], (q, query_dz), (k, dz))
        # the weights after a chunk's last token are the next chunk's anchor, or the state at the block's end
        after = slice(self.chunk_size - 1, None, self.chunk_size)
        d_start[..., after] += d_ends[..., 0]
        d_lag[..., after] += d_ends[..., 1]
        d_mix[..., after, :] += d_mixes
        grad = Decay(d_start, d_lag, d_mix, d_ends[..., -1, 2], d_later)
        if layout.gates.shape[1] < depth:  # the layers share their gates
            grad = Decay(*(g.sum(0, keepdim=True) for g in grad))
        (theta, _, _), real = self._gates(first, last)
        out.gates[:, :, first:last] = torch.stack(decay_backward(grad, theta, c.products, real))

    def _through_end_anchor(
        self,
        first: int,
        last: int,
        w: Written,
        c: Coefficients,
        d_running: list[Tensor],
        d_anchor: list[Tensor],
        d_inputs: list[Tensor],
        d_slopes: list[Tensor],
        d_start: Tensor,
        d_lag: Tensor,
        d_mix: Tensor,
    ) -> None:
        """Adds the gradients of writes and coefficients through the end anchor; the kernel adds those of the state.

        The end anchor is `start M + lag S - (a * mix)^T d` at the start of a row's last chunk, or the incoming
        anchor if that chunk had begun before the call.
        """
        layout, rows = self.layout, torch.arange(self.rows, device=w.d.device)
        block, token = layout.last // self.in_block - first, layout.last % self.in_block * self.chunk_size
        here = (layout.last >= 0) & (block >= 0) & (block < last - first)
        came_in = here & (layout.goes_on != 0) & (layout.last == 0)
        for into, g in zip(d_anchor, d_running, strict=False):
            into += torch.where(came_in[:, None, None], g, 0)
        here = here & ~came_in & (token > 0)  # at a block's start the anchor is the state
        at, before = (block.clamp(0, last - first - 1).long(), rows), (token - 1).clamp_min(0).long()
        keys = layout.k[first:last]
        inputs, slopes = ([keys, w.active], [w.slope, w.d]) if self.form.depth == 2 else ([keys], [w.d])
        for layer, g in enumerate(torch.where(here[:, None, None], r, 0) for r in d_running):
            a, d = inputs[layer][at].to(g.dtype), slopes[layer][at].to(g.dtype)
            m, s = w.slots[layer][at].to(g.dtype).chunk(2, 1)
            mix = c.decay.mix[min(layer, layout.gates.shape[1] - 1)][*at, before, :, None]
            by_a = a @ g
            d_slopes[layer][at] -= mix * by_a
            d_inputs[layer][at] -= mix * (d @ g.mT)
            d_start[layer][*at, before] += (m * g).sum((1, 2))
            d_lag[layer][*at, before] += (s * g).sum((1, 2))
            d_mix[layer][*at, before] -= (by_a * d).sum(2)


class Gradients(NamedTuple):
    """Gradients of the inputs of `forward`."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    state: list[Tensor]
    anchor: list[Tensor]
    initial: list[Tensor]
    norm: list[Tensor]
    base: list[Tensor]


def _through_base(into: Tensor, *products: tuple[Tensor, Tensor]) -> None:
    """Adds the gradient of the base `[rows, d_in, d_out]` from products with it: their inputs and gradients."""
    for x, d in products:
        x, d = (t.to(into.dtype).transpose(0, 1).flatten(1, 2) for t in (x, d))
        into.baddbmm_(x.mT, d)


def _own(state: list[Tensor]) -> list[Tensor]:
    """The weights of each layer's state `[rows, 2 d_in, d_out]`, in which the momentum comes second."""
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
    base: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    form: MemoryNetwork,
    plan: planning.Plan,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Runs all groups in order; returns y, inner loss, end offset, end state, end anchor, kept states per group.

    `base`: per layer `[H, d_in, d_out]`, from which the weights of states and anchors count, too; empty for 0.
    """
    layout = make_layout(q, k, v, gates, offset, mask, reset, chunk_size, plan.block)
    passes = Passes(layout, anchor, initial, norm, base, form, q.shape[2], chunk_size, plan)
    running = [a.clone(memory_format=torch.contiguous_format) for a in anchor or _own(state)]
    y, losses, kept = torch.empty_like(layout.q), torch.empty_like(layout.gates[0, 0]), []
    for first, last in passes.groups():
        kept.append(state)
        c = passes.coefficients(first, last)
        written = passes.write(first, last, state, c, running)
        passes.read(first, last, written, c, y[first:last])
        losses[first:last] = written.loss
        state = written.end
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
    base: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    kept: list[Tensor],
    chunk_size: int,
    form: MemoryNetwork,
    plan: planning.Plan,
) -> Gradients:
    """Gradients of all inputs of `forward` from those of y, the end state and the end anchor (`d_running`)."""
    heads, batch = q.shape[2], q.shape[0]
    layout = make_layout(q, k, v, gates, offset, mask, reset, chunk_size, plan.block)
    passes = Passes(layout, anchor, initial, norm, base, form, heads, chunk_size, plan)
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
        [b.new_zeros(passes.rows, *b.shape[1:]) for b in base],
    )
    at_start = by_row(layout.offset == 0, heads)
    for into, r in zip(_own(out.state), d_running, strict=True):
        into += torch.where(at_start, r, 0)
    d_running = contiguous([torch.where(at_start, 0, r) for r in d_running])
    if layout.schedule is not None:
        untouched = by_row(layout.schedule.last < 0, heads)
        # in a row without tokens the end anchor is the incoming one
        for into, r in zip(out.anchor, d_running, strict=False):
            into += torch.where(untouched, r, 0)
    for g, (first, last) in reversed(list(enumerate(passes.groups()))):
        c = passes.coefficients(first, last)
        running = [torch.empty_like(r) for r in d_running]  # not used: the end anchor is known
        written = passes.write(first, last, [s[g] for s in kept], c, running)
        passes.backward(first, last, written, c, dy[first:last], out, d_running)
    q, k, v = (from_slots(x, layout.schedule, batch) for x in out[:3])
    flat = torch.stack([from_slots(x, layout.schedule, batch) for x in out.gates.flatten(0, 1)])
    return Gradients(
        q, k, v, flat.view(gates.shape), out.state, out.anchor, out.initial,
        *([d.unflatten(0, (batch, heads)).sum(0) for d in part] for part in (out.norm, out.base)),
    )  # fmt: skip
