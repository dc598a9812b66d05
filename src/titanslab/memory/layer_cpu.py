"""The training pass of a layer on a CPU, in three nodes of autograd that hold little.

One product makes all projections of the input. Backward computes q, k, v again from that product, and the input of the
output projection too: they cost less to compute than to hold. `backends.takes_layer` says when it runs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs, first_order, or_zeros
from titanslab.memory.chunked.op import begin, end_state, from_base, is_aligned, norm_and_base, placed, to_whole
from titanslab.memory.cpu import chunked as loop
from titanslab.memory.cpu.features import convolve, features, features_backward, gated_norm, gated_norm_backward
from titanslab.memory.rows import fitting_chunk
from titanslab.memory.state import MemoryState, NeuralMemoryState, with_read

if TYPE_CHECKING:
    from titanslab.memory.layer import NeuralMemory

# the product is padded to a multiple of this many columns, a whole cache line
WHOLE = 16
# the first two of q, k, v have unit norm
UNIT = 2
STATS = ("theta", "eta", "alpha", "loss", "write")


class Written(NamedTuple):
    """What a layer's writer returns.

    y: reads `[B,T,H,D]`, each right after its own write. stats: the gates `[B,T,H,1 or L]`, "loss" and "write", see
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
        ctx: Any, x: Tensor, width: int, back: int, gated: bool, scalars: int, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        raw = (x.flatten(0, 1) @ join(weights).t()).view(*x.shape[:2], -1)
        columns = _columns(raw, width, 3 + gated)
        first = width * len(columns)
        ends = [c[:, -back:].contiguous() for c in columns[:3]]
        ctx.width, ctx.gated, ctx.shape = width, gated, raw.shape
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)
        return raw, raw[..., first : first + scalars].contiguous(), *ends, *columns[3:]

    @staticmethod
    @first_order
    def backward(ctx: Any, d_raw: Any, d_scalars: Any, *rest: Any) -> tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        d_raw = x.new_zeros(ctx.shape) if d_raw is None else d_raw
        into = _columns(d_raw, ctx.width, 3 + ctx.gated)
        for d, end in zip(into, rest[:3], strict=False):
            if end is not None:
                d[:, -end.shape[1] :] += end
        for target, d in zip((d_raw[..., ctx.width * len(into) :], *into[3:]), (d_scalars, *rest[3:]), strict=True):
            if d is not None:
                target[..., : d.shape[-1]].copy_(d)
        flat = d_raw.flatten(0, 1)
        dx = (flat @ join(weights)).view_as(x) if ctx.needs_input_grad[0] else None
        d_weights = (flat.t() @ x.flatten(0, 1))[: sum(w.shape[0] for w in weights)]
        return dx, *[None] * 4, *d_weights.split([w.shape[0] for w in weights])


def join(weights: Sequence[Tensor]) -> Tensor:
    """The weights of all projections as one, with rows of zeros up to a whole cache line."""
    rows = sum(w.shape[0] for w in weights)
    if len(weights) == 1 and rows % WHOLE == 0:
        return weights[0]
    padding = [weights[0].new_zeros(-rows % WHOLE, weights[0].shape[1])] if rows % WHOLE else []
    return torch.cat([*weights, *padding])


class _Memory(torch.autograd.Function):
    """Short convolutions and the CPU chunk loop; it holds the projections of which q, k, v are made, not q, k, v."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, counts: tuple[int, ...], static: Any, *tensors: Any) -> Any:
        (n, states, anchors, norms), (heads, lanes, chunk_size, residual, grad_clip) = counts, static
        convs, tails, (gates, *rest) = tensors[:3], tensors[3 : 3 + n], tensors[3 + n :]
        state, rest = rest[:states], rest[states:]
        anchor, rest = rest[:anchors], rest[anchors:]
        initial, rest = rest[:states], rest[states:]
        norm, offset = rest[:norms], rest[norms]
        q, k, v = _parts(raw, convs, tails, heads, lanes)
        plain, base = norm_and_base(norm)
        inputs = Inputs(q, k, v, gates, anchor, initial, plain, None, chunk_size, 0, residual, grad_clip, base=base)
        inputs = placed(inputs, "cpu", offset, None, None)._replace(raw=raw if lanes else None, convs=convs)
        y, loss, end, running, kept, end_offset = loop.forward(inputs, state, True)
        if inputs.schedule is None and offset is None and kept[0].shape[0] == 1:  # the start is not held twice
            kept = [*(s.unsqueeze(0) for s in state), *kept[states:]]
        ctx.rest = inputs[7:-3]  # what is no tensor of the call
        ctx.counts, ctx.heads, ctx.lanes = counts, heads, lanes
        ctx.shapes = [(i.shape, i.dtype) for i in initial]
        ctx.save_for_backward(raw, *convs, *tails, gates, *anchor, *norm, *kept)
        ctx.mark_non_differentiable(loss, end_offset)
        ctx.set_materialize_grads(False)
        return y, loss, end_offset, *end, *running

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Any, d_loss: Any, d_offset: Any, *d_states: Any) -> tuple[Any, ...]:
        (n, states, anchors, norms), (raw, *rest) = ctx.counts, ctx.saved_tensors
        convs, tails, (gates, *rest) = rest[:3], rest[3 : 3 + n], rest[3 + n :]
        anchor, norm, kept = rest[:anchors], rest[anchors : anchors + norms], rest[anchors + norms :]
        q, k, v = _parts(raw, convs, tails, ctx.heads, ctx.lanes)
        # no document begins, so backward reads the shapes of `initial` alone
        initial = [q.new_empty(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        d_raw, width = torch.empty_like(raw), convs[0].shape[1]
        d_raw[..., 3 * width :] = 0
        plain, base = norm_and_base(norm)
        inputs = Inputs(q, k, v, gates, anchor, initial, plain, *ctx.rest)
        inputs = inputs._replace(raw=raw if ctx.lanes else None, convs=convs, base=base)
        d_end = d_running = None
        if dy is None or not inputs.lanes or any(d is not None for d in d_states):
            ends = [i.new_empty(q.shape[0] * q.shape[2], *i.shape[1:]) for i in initial]
            dy, d_end, d_running = or_zeros(dy, d_states[:states], d_states[states:], q, ends)
        *d_parts, d_gates, d_state, d_anchor, _, d_norm = loop.backward(inputs, kept, dy, d_end, d_running, d_raw)
        if not ctx.lanes:
            columns, into = _columns(raw, width, 3), _columns(d_raw, width, 3)
            d_parts = features_backward(d_parts, columns, convs, tails, ctx.heads, UNIT, into)[3:]
        d_initial = [q.new_zeros(()).expand(i.shape) for i in initial]
        return d_raw, None, None, *d_parts, d_gates, *d_state, *d_anchor, *d_initial, *d_norm, None


def _parts(raw: Tensor, convs: Sequence[Tensor], tails: Sequence[Tensor], heads: int, lanes: bool) -> list[Tensor]:
    """q, k, v `[B,T,H,D]`; with `lanes`, where the loop makes them itself, what they are made of."""
    made = _columns(raw, convs[0].shape[1], 3)
    made = made if lanes else features(made, list(convs), list(tails), heads, UNIT)
    return [p.unflatten(-1, (heads, -1)) for p in made]


def write(
    layer: "NeuralMemory",
    gated: bool,
    x: Tensor,
    state: NeuralMemoryState | None,
    *,
    initial: NeuralMemoryState | None,
    write_scale: float,
    return_stats: bool,
    **_: object,
) -> Written:
    """`NeuralMemory.write` where `backends.takes_layer` holds: no padding or documents, with learning.

    With `gated` it makes the output gate too.
    """
    gates, params, source = layer.gate_projections(), layer.params, state or initial
    weights = [*(getattr(layer, f"{n}_proj").weight for n in ("qkvg" if gated else "qkv")), *(p.weight for p in gates)]
    convs = [getattr(layer, f"{n}_conv1d").weight for n in "qkv"]
    tails = [] if source is None else [source.conv[n].to(x.dtype).expand(x.shape[0], -1, -1) for n in "qkv"]
    heads, (taps, width) = layer.num_heads, convs[0].shape
    chunk_size = fitting_chunk(layer.chunk_size, x.shape[1], None if state is None else state.memory.offset)
    lanes = loop.lane_group(x.shape[0] * heads, [2 * w[0].numel() for w in params.weights], chunk_size)
    raw, raw_gates, tail_q, tail_k, tail_v, *gate = _Project.apply(
        x, width, taps - 1, gated, sum(p.out_features for p in gates), *weights
    )
    q, k = raw.detach()[..., :width].unflatten(-1, (heads, -1)), None  # of q the shape alone is read
    if layer.theta_key_proj is not None:
        k = convolve([raw[..., width : 2 * width]], [convs[1]], tails[1:2], heads, 1)[0].view(q.shape)
    theta, eta, alpha, share = layer.activate(raw_gates + torch.cat([p.bias for p in gates]), k)
    if write_scale != 1.0:
        theta = theta * write_scale
    before, widths, batch = None, layer.network.widths(layer.head_dim), x.shape[0]
    first = MemoryState.initial(params, 1) if initial is None else initial.memory
    first.check("initial", q, widths, (1, batch))
    if state is not None:
        state.memory.check("state", q, widths, (batch,), layer.chunk_size)
        before = state.memory.in_dtype(q.dtype)
    first = first.in_dtype(q.dtype)
    aligned = before is not None and is_aligned(x.shape[1], chunk_size, before.offset, None, None)
    rows = first.batch_size if before is None else batch
    start = begin(torch.stack((theta, eta, alpha)).movedim(-1, 1), params, before, first, rows, aligned=aligned)
    base = params.weights if layer.config.forget_to == "start" else ()
    start = from_base(start, base) if base else start
    if rows < batch and not lanes:
        now = [s.repeat(batch, 1, 1) for s in start.state]
        start = start._replace(state=now, initial=now)
    counts = (len(tails), len(start.state), len(start.anchor), len(start.slow))
    makes = bool(lanes) and source is None  # the loop makes q, k and v itself
    static = (heads, makes, chunk_size, layer.network.residual, layer.network.grad_clip)
    lists = (*start.state, *start.anchor, *start.initial, *start.slow)
    y, loss, offset, *ends = _Memory.apply(raw, counts, static, *convs, *tails, start.gates, *lists, start.offset)
    end = to_whole(ends[: counts[1]], base) if base else ends[: counts[1]]
    memory = end_state(end, ends[counts[1] :], offset, heads)
    conv = with_read({"q": tail_q, "k": tail_k, "v": tail_v}, source)
    stats = dict(zip(STATS, (theta, eta, alpha, loss, share), strict=True)) if return_stats else {}
    return Written(y, NeuralMemoryState(memory, conv), stats, gate[0] if gate else None)


class _Emit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, scale: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(y, gate, scale, weight)
        ctx.eps = eps
        return gated_norm(y, scale, gate, eps) @ weight.t()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
        y, gate, scale, weight = ctx.saved_tensors
        d_weight = d_out.flatten(0, 1).t() @ gated_norm(y, scale, gate, ctx.eps).flatten(0, 1)
        dy, d_scale, d_gate = gated_norm_backward(d_out @ weight, y, scale, gate, ctx.eps)
        return dy, d_gate, d_scale, d_weight, None


def emit(y: Tensor, gate: Tensor, scale: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of `y [B,T,H,D]` per head times `gate [B,T,H*D]`, then the projection `weight [hidden, H*D]`."""
    return _Emit.apply(y, gate, scale, weight, eps)
