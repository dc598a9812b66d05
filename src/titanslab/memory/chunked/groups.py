"""The writes of a group of chunks, one after the other: what forward and the recomputation in backward share."""

from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.chunked.equations import Form, Functions
from titanslab.memory.chunked.slots import Layout, by_row
from titanslab.memory.decay import Decay, Products, decay


class Coefficients(NamedTuple):
    """Decay of one group, by layer (the same tensors for every layer where gates are shared)."""

    start: list[Tensor]
    lag: list[Tensor]
    mix: list[Tensor]
    ends: list[Tensor]  # [n, rows, 3]
    mixes: list[Tensor]  # [n, rows, C, 2]


def _spread(x: Tensor, depth: int) -> list[Tensor]:
    return [x[min(layer, x.shape[0] - 1)] for layer in range(depth)]


def coefficients_of(d: Decay, depth: int) -> Coefficients:
    ends = torch.stack([d.start[..., -1], d.lag[..., -1], d.momentum_end], -1)
    mixes = torch.stack([d.mix[..., -1, :], d.momentum_mix], -1)
    return Coefficients(*(_spread(x, depth) for x in (d.start, d.lag, d.mix, ends, mixes)))


def flush(state: list[Tensor]) -> list[Tensor]:
    """Zero what is too small to matter: denormal numbers slow CPU matrix products down several times."""
    if state[0].device.type != "cpu" or state[0].dtype != torch.float32:
        return state
    return [torch.where(s.abs() < 1e-30, 0, s) for s in state]


class Group(NamedTuple):
    """One group of chunks as forward leaves it and backward wants it; `n` chunks, `rows` = batch * heads."""

    state: list[Tensor]  # [n + 1, rows, 2 d_in, d_out]: at each chunk's start, and the end
    anchor: list[Tensor]  # of the first chunk, where it is not the state's own weights
    inputs: list[Tensor]  # a_0..: [n, rows, C, d]
    slopes: list[Tensor]
    loss: Tensor
    coefficients: Coefficients


class Loop:
    """The chunk loop of one call: what forward and the recomputation in backward share."""

    def __init__(
        self,
        layout: Layout,
        anchor: list[Tensor],
        initial: list[Tensor],
        norm: list[Tensor],
        form: Form,
        heads: int,
        functions: Functions,
    ) -> None:
        self.functions = functions
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
        return by_row(schedule.resets[n], self.heads)

    def goes_on(self, n: int) -> Tensor | None:
        """Rows whose chunk n continues the incoming state's chunk, `[rows, 1, 1]`."""
        schedule = self.layout.schedule
        if n > 0 or schedule is None or not self.anchor:
            return None
        return by_row(schedule.continues, self.heads)

    def own(self, state: list[Tensor]) -> list[Tensor]:
        return [s[:, :w] for s, w in zip(state, self.widths, strict=True)]

    def run(self, first: int, last: int, start: list[Tensor], coefficients: Coefficients) -> Group:
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
            write = self.functions.write_chunk(
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
        return Group(states, special, inputs, slopes, torch.stack([w.loss for w in writes]), coefficients)

    def read_arguments(self, first: int, last: int, group: Group, part: slice):
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
