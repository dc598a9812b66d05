"""The training pass of a layer on a CPU, in three nodes of autograd that hold little.

One product makes all projections of the input. Backward computes q, k, v again from that product, and the input of the
output projection too: they cost less to compute than to hold. `backends.takes_layer` says when it runs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs
from titanslab.memory.chunked.op import begin, end_state, is_aligned, placed
from titanslab.memory.cpu import chunked as loop
from titanslab.memory.cpu.features import features, features_backward, gated_norm, gated_norm_backward
from titanslab.memory.state import MemoryState, NeuralMemoryState, with_read

if TYPE_CHECKING:
    from titanslab.memory.layer import NeuralMemory

# the product is padded to a multiple of this many columns, a whole cache line
WHOLE = 16
# the first two of q, k, v have unit norm
UNIT = 2


class Written(NamedTuple):
    """What a layer's writer returns.

    y: reads `[B,T,H,D]`, each right after its own write. stats: the gates, "loss" and "write", see
    `NeuralMemory.forward`; empty where not wanted. gate: the output gate `[B,T,H*D]`, or None where it is not computed.
    """

    y: Tensor
    state: NeuralMemoryState
    stats: dict[str, Tensor]
    gate: Tensor | None


def _columns(raw: Tensor, width: int, count: int) -> list[Tensor]:
    return [raw[..., i * width : (i + 1) * width] for i in range(count)]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, heads: int, gated: bool, scalars: int, projections: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        weights, rest = tensors[:projections], tensors[projections:]
        convs, tails = rest[:3], rest[3:]
        raw = (x.flatten(0, 1) @ join(weights).t()).view(*x.shape[:2], -1)
        back, width = convs[0].shape[0] - 1, convs[0].shape[1]
        columns = _columns(raw, width, 3 + gated)
        parts = features(columns[:3], list(convs), list(tails), heads, UNIT)
        first = width * len(columns)
        ends = [c[:, -back:].contiguous() for c in columns[:3]]
        ctx.heads, ctx.gated, ctx.projections = heads, gated, projections
        ctx.save_for_backward(x, raw, *tensors)
        ctx.mark_non_differentiable(raw)
        ctx.set_materialize_grads(False)
        return *parts, raw[..., first : first + scalars].contiguous(), *ends, raw, *columns[3:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dq: Any, dk: Any, dv: Any, d_scalars: Any, *rest: Any) -> tuple[Any, ...]:
        n = ctx.projections
        x, raw, *tensors = ctx.saved_tensors
        weights, convs, tails = tensors[:n], tensors[n : n + 3], tensors[n + 3 :]
        width, d_ends = convs[0].shape[1], rest[:3]
        d_raw = torch.empty_like(raw)
        columns, into = _columns(raw, width, 3), _columns(d_raw, width, 3 + ctx.gated)
        dy = [torch.zeros_like(c) if d is None else d for d, c in zip((dq, dk, dv), columns, strict=True)]
        grads = features_backward(dy, columns, list(convs), list(tails), ctx.heads, UNIT, into[:3])[3:]
        for d, end in zip(into, d_ends, strict=False):
            if end is not None:
                d[:, -end.shape[1] :] += end
        for target, d in zip((d_raw[..., width * len(into) :], *into[3:]), (d_scalars, *rest[4:]), strict=True):
            if d is None:
                target.zero_()
            else:
                target[..., : d.shape[-1]].copy_(d)
                target[..., d.shape[-1] :].zero_()
        flat = d_raw.flatten(0, 1)
        dx = (flat @ join(weights)).view_as(x) if ctx.needs_input_grad[0] else None
        d_weights = (flat.t() @ x.flatten(0, 1))[: sum(w.shape[0] for w in weights)]
        return dx, None, None, None, None, *d_weights.split([w.shape[0] for w in weights]), *grads


def join(weights: Sequence[Tensor]) -> Tensor:
    """The weights of all projections as one, with rows of zeros up to a whole cache line."""
    rows = sum(w.shape[0] for w in weights)
    if len(weights) == 1 and rows % WHOLE == 0:
        return weights[0]
    padding = [weights[0].new_zeros(-rows % WHOLE, weights[0].shape[1])] if rows % WHOLE else []
    return torch.cat([*weights, *padding])


class _Memory(torch.autograd.Function):
    """The CPU chunk loop; it holds the projections of which q, k, v are made instead of q, k, v themselves."""

    @staticmethod
    def forward(
        ctx: Any, raw: Tensor, convs: Any, tails: Any, counts: tuple[int, ...], static: Any, *tensors: Any
    ) -> Any:
        q, k, v, gates, *rest = tensors
        states, anchors, norms = counts
        state, rest = rest[:states], rest[states:]
        anchor, rest = rest[:anchors], rest[anchors:]
        initial, rest = rest[:states], rest[states:]
        norm, offset = rest[:norms], rest[norms]
        chunk_size, residual, grad_clip = static
        inputs = Inputs(q, k, v, gates, anchor, initial, norm, None, chunk_size, 0, residual, grad_clip)
        inputs = placed(inputs, "cpu", offset, None, None)
        y, loss, end, running, kept, end_offset = loop.forward(inputs, state, True)
        if inputs.schedule is None and offset is None and kept[0].shape[0] == 1:  # the start is not held twice
            kept = [*(s.unsqueeze(0) for s in state), *kept[states:]]
        ctx.rest = inputs[7:]  # what is no tensor of the call
        ctx.counts, ctx.sizes = counts, (len(convs), len(tails))
        ctx.shapes, ctx.heads = [(i.shape, i.dtype) for i in initial], q.shape[2]
        ctx.save_for_backward(raw, gates, *convs, *tails, *anchor, *norm, *kept)
        ctx.mark_non_differentiable(loss, end_offset)
        return y, loss, end_offset, *end, *running

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Any, d_loss: Any, d_offset: Any, *d_states: Any) -> tuple[Any, ...]:
        raw, gates, *rest = ctx.saved_tensors
        (n, m), (states, anchors, norms) = ctx.sizes, ctx.counts
        convs, tails, rest = rest[:n], rest[n : n + m], rest[n + m :]
        anchor, norm, kept = rest[:anchors], rest[anchors : anchors + norms], rest[anchors + norms :]
        columns = _columns(raw, convs[0].shape[1], 3)
        q, k, v = (p.unflatten(-1, (ctx.heads, -1)) for p in features(columns, convs, tails, ctx.heads, UNIT))
        # no document begins, so backward reads the shapes of `initial` alone
        initial = [q.new_empty(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        inputs = Inputs(q, k, v, gates, anchor, initial, norm, *ctx.rest)
        d_end, d_running = list(d_states[:states]), list(d_states[states:])
        dq, dk, dv, d_gates, *lists = loop.backward(inputs, kept, dy, d_end, d_running)
        return None, None, None, None, None, dq, dk, dv, d_gates, *(d for part in lists for d in part), None


class Writer:
    """Writes tokens of one layer and reads them back; made for many calls in a row, whose weights it joins once.

    It takes what `backends.takes_layer` allows: no padding, no documents, a memory that learns. All its calls take one
    `initial`.
    """

    def __init__(self, layer: "NeuralMemory", gated: bool) -> None:
        self.layer, self.gated = layer, gated
        projections = layer.gate_projections()
        self.scalars = sum(p.out_features for p in projections)
        self.bias = torch.cat([p.bias for p in projections])
        names = "qkvg" if gated else "qkv"
        weights = [*(getattr(layer, f"{n}_proj").weight for n in names), *(p.weight for p in projections)]
        # one call alone joins them inside its node, which spares the backward of the join
        self.weights = weights if gated else [join(weights)]
        self.convs = [getattr(layer, f"{n}_conv1d").weight for n in "qkv"]
        self.params = layer.params
        self.first: MemoryState | None = None
        self.returned: MemoryState | None = None

    def __call__(
        self,
        x: Tensor,
        state: NeuralMemoryState | None,
        *,
        initial: NeuralMemoryState | None,
        write_scale: float,
        return_stats: bool,
        **_: object,
    ) -> Written:
        layer, source = self.layer, state or initial
        tails = [] if source is None else [source.conv[n].to(x.dtype).expand(x.shape[0], -1, -1) for n in "qkv"]
        sizes = (layer.num_heads, self.gated, self.scalars, len(self.weights))
        q, k, v, raw_gates, *ends = _Project.apply(x, *sizes, *self.weights, *self.convs, *tails)
        (tail_q, tail_k, tail_v, raw), gate = ends[:4], ends[4] if self.gated else None
        q, k, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in (q, k, v))
        theta, eta, alpha, write = layer.activate(raw_gates + self.bias, k)
        if write_scale != 1.0:
            theta = theta * write_scale
        later = state is not None and state.memory is self.returned
        before, first = self._states(q, state, initial)
        aligned = before is not None and is_aligned(x.shape[1], layer.chunk_size, before.offset, None, None)
        gates = [(theta[..., i, None], eta[..., i, None], alpha[..., i, None]) for i in range(theta.shape[-1])]
        start = begin(gates, self.params, before, first, x.shape[0], aligned=aligned, documents=not later)
        counts = (len(start.state), len(start.anchor), len(start.norm))
        static = (layer.chunk_size, layer.network.residual, layer.network.grad_clip)
        lists = (*start.state, *start.anchor, *start.initial, *start.norm)
        y, loss, offset, *ends = _Memory.apply(
            raw, self.convs, tails, counts, static, q, k, v, start.gates, *lists, start.offset
        )
        self.returned = memory = end_state(ends[: counts[0]], ends[counts[0] :], offset, layer.num_heads)
        conv = {"q": tail_q, "k": tail_k, "v": tail_v}
        stats = {"theta": theta, "eta": eta, "alpha": alpha, "loss": loss, "write": write} if return_stats else {}
        return Written(y, NeuralMemoryState(memory, with_read(conv, source)), stats, gate)

    def _states(
        self, q: Tensor, state: NeuralMemoryState | None, initial: NeuralMemoryState | None
    ) -> tuple[MemoryState | None, MemoryState]:
        """The memory before the call, and that at which documents start, in the dtype of q.

        They are checked, unless the memory is the one that the call before returned.
        """
        first = self.first or (MemoryState.initial(self.params, 1) if initial is None else initial.memory)
        before = None if state is None else state.memory
        if before is None or before is not self.returned:
            widths, batch = self.layer.network.widths(q.shape[3]), q.shape[0]
            first.check("initial", q, widths, {1, batch})
            if before is not None:
                before.check("state", q, widths, {batch})
                before = before.to(q.dtype)
            first = first.to(q.dtype)
        self.first = first
        return before, first


class _Emit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, scale: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(y, gate, scale, weight)
        ctx.eps = eps
        return gated_norm(y, scale, gate, eps) @ weight.t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
        y, gate, scale, weight = ctx.saved_tensors
        d_weight = d_out.flatten(0, 1).t() @ gated_norm(y, scale, gate, ctx.eps).flatten(0, 1)
        dy, d_scale, d_gate = gated_norm_backward(d_out @ weight, y, scale, gate, ctx.eps)
        return dy, d_gate, d_scale, d_weight, None


def emit(y: Tensor, gate: Tensor, scale: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of `y [B,T,H,D]` per head times `gate [B,T,H*D]`, then the projection `weight [hidden, H*D]`."""
    return _Emit.apply(y, gate, scale, weight, eps)
