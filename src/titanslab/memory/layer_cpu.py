"""The layer around the memory where it trains on a CPU, in three nodes of autograd that hold little.

One product for all projections of the input; the convolutions' outputs q, k, v, which cost less to compute than to
hold, are computed again in backward from that product, as is the output projection's input.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from titanslab.memory.autograd import STATIC, gradients, kept_states
from titanslab.memory.chunked.op import chunked_memory, chunked_memory_backward

WHOLE = 16  # columns of the product are padded to whole cache lines
UNIT = 2  # q and k have unit norm, v has not


class Packed(NamedTuple):
    """Projections of a layer's input: `raw` holds them all, the output gate and `scalars` are columns of it."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None
    scalars: Tensor
    tails: tuple[Tensor, ...]
    raw: Tensor


def plain(*layers: nn.Module) -> bool:
    """Whether each is a bare `nn.Linear`: nothing hooked on or put around it that a product would pass by."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(type(layer) is nn.Linear and not any(getattr(layer, h) for h in hooks) for layer in layers)


def _columns(raw: Tensor, width: int, count: int) -> list[Tensor]:
    return [raw[..., i * width : (i + 1) * width] for i in range(count)]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, heads: int, gated: bool, scalars: int, projections: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        from titanslab.memory.cpu.features import features

        weights, rest = tensors[:projections], tensors[projections:]
        convs, tails = rest[:3], rest[3:]
        raw = (x.flatten(0, 1) @ side_by_side(weights).t()).view(*x.shape[:2], -1)
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
        from titanslab.memory.cpu.features import features_backward

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
        dx = (flat @ side_by_side(weights)).view_as(x) if ctx.needs_input_grad[0] else None
        d_weights = (flat.t() @ x.flatten(0, 1))[: sum(w.shape[0] for w in weights)]
        return dx, None, None, None, None, *d_weights.split([w.shape[0] for w in weights]), *grads


def side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """The weights of all projections as one, with rows of zeros at the end where a cache line is not full."""
    rows = sum(w.shape[0] for w in weights)
    if len(weights) == 1 and rows % WHOLE == 0:
        return weights[0]
    padding = [weights[0].new_zeros(-rows % WHOLE, weights[0].shape[1])] if rows % WHOLE else []
    return torch.cat([*weights, *padding])


def project(
    x: Tensor,
    heads: int,
    weights: Sequence[Tensor],
    convs: list[Tensor],
    tails: list[Tensor],
    scalars: int,
    gated: bool = True,
) -> Packed:
    """q, k, v, the output gate (`gated`) and the raw gates (without bias) of `x [B,T,hidden]`, T at least the taps.

    Args:
        weights: of the projections q, k, v, with `gated` the output gate, and theta, eta, alpha, or what `side_by_side`
            makes of them. scalars: rows of the last three.
        convs: `[taps, heads * D]` of q, k, v. tails: `[B, taps-1, heads * D]` of them, or nothing.
    """
    q, k, v, raw_gates, tail_q, tail_k, tail_v, raw, *gate = _Project.apply(
        x, heads, gated, scalars, len(weights), *weights, *convs, *tails
    )
    q, k, v = (p.unflatten(-1, (heads, -1)) for p in (q, k, v))
    return Packed(q, k, v, gate[0] if gated else None, raw_gates, (tail_q, tail_k, tail_v), raw)


class _Memory(torch.autograd.Function):
    """`chunked_memory` that holds what q, k, v are computed from instead of them."""

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
        y, loss, end_offset, end, running, kept = chunked_memory(
            q, k, v, gates, state, anchor, initial, norm, offset, None, None, *static
        )
        ctx.static, ctx.counts, ctx.inputs = static[:STATIC], counts, (len(convs), len(tails))
        ctx.shapes, ctx.heads = [(i.shape, i.dtype) for i in initial], q.shape[2]
        ctx.save_for_backward(raw, gates, offset, *convs, *tails, *anchor, *norm, *kept_states(kept, state))
        ctx.mark_non_differentiable(loss, end_offset)
        ctx.set_materialize_grads(False)
        return y, loss, end_offset, *end, *running

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Any, d_loss: Any, d_offset: Any, *d_states: Any) -> tuple[Any, ...]:
        from titanslab.memory.cpu.features import features

        raw, gates, offset, *rest = ctx.saved_tensors
        (n, m), (states, anchors, norms) = ctx.inputs, ctx.counts
        convs, tails, rest = rest[:n], rest[n : n + m], rest[n + m :]
        anchor, norm, kept = rest[:anchors], rest[anchors : anchors + norms], rest[anchors + norms :]
        columns = _columns(raw, convs[0].shape[1], 3)
        q, k, v = (p.unflatten(-1, (ctx.heads, -1)) for p in features(columns, convs, tails, ctx.heads, UNIT))
        initial = [q.new_empty(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        grads = gradients(
            chunked_memory_backward,
            (dy, d_states[:states], d_states[states:]),
            (q, k, v, gates, anchor, initial, norm, offset, None, None, kept),
            ctx.static,
        )
        return None, None, None, None, None, *grads, None


def remember(packed: Packed, convs: list[Tensor], tails: list[Tensor], *arguments: Any) -> Any:
    """`chunked_memory(*arguments)` on the q, k, v of `packed`, but for the kept states, which it does not return."""
    q, k, v, gates, state, anchor, initial, norm, offset, mask, reset, *static = arguments
    if mask is not None or reset is not None:
        raise ValueError("mask and reset must be None here; use chunked_memory")
    counts = (len(state), len(anchor), len(norm))
    y, loss, end_offset, *ends = _Memory.apply(
        packed.raw, convs, tails, counts, tuple(static), q, k, v, gates, *state, *anchor, *initial, *norm, offset
    )
    return y, loss, end_offset, ends[: len(state)], ends[len(state) :], []


class _Emit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, scale: Tensor, weight: Tensor, eps: float) -> Tensor:
        from titanslab.memory.cpu.features import gated_norm

        ctx.save_for_backward(y, gate, scale, weight)
        ctx.eps = eps
        return gated_norm(y, scale, gate, eps) @ weight.t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
        from titanslab.memory.cpu.features import gated_norm, gated_norm_backward

        y, gate, scale, weight = ctx.saved_tensors
        d_weight = d_out.flatten(0, 1).t() @ gated_norm(y, scale, gate, ctx.eps).flatten(0, 1)
        dy, d_scale, d_gate = gated_norm_backward(d_out @ weight, y, scale, gate, ctx.eps)
        return dy, d_gate, d_scale, d_weight, None


def emit(y: Tensor, gate: Tensor, scale: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of `y [B,T,H,D]` per head times `gate [B,T,H*D]`, then the projection `weight [hidden, H*D]`."""
    return _Emit.apply(y, gate, scale, weight, eps)
