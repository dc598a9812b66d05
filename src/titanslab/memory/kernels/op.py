"""`backend="triton"`: the fused kernels as custom ops, so that `torch.compile` of a model passes through them."""

import torch
from torch import Tensor

from titanslab.memory.chunk import Form
from titanslab.memory.kernels import plan as planning
from titanslab.memory.kernels.layout import is_ragged
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Gates
from titanslab.memory.state import MemoryState


def _plan(q: Tensor, depth: int, last: Tensor, chunk_size: int) -> planning.Plan:
    """From q `[B,T,H,D]` and the last layer's state `[B*H, 2 d_in, D]`."""
    hidden = q.shape[3] if depth == 1 else last.shape[1] // 2
    return planning.make_plan(q.shape[3], hidden, chunk_size, q.shape[1])


@torch.library.custom_op("titanslab::fused_memory", mutates_args=())
def fused_memory(
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
    residual: bool,
    grad_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The whole walk. Arguments as `chunked_memory`, but q, k, v may be bfloat16.

    Returns:
        y `[B,T,H,D]` like q, inner loss `[B,T,H]`, offset `[B]`, end state, end anchor, kept states.
    """
    from titanslab.memory.kernels.passes import forward

    form = Form(len(state), residual, bool(norm), grad_clip)
    with torch.autocast(q.device.type, enabled=False):
        return forward(
            q, k, v, gates, state, anchor, initial, norm, offset, mask, reset, chunk_size, form,
            _plan(q, form.depth, state[-1], chunk_size),
        )  # fmt: skip


@fused_memory.register_fake
def _(q, k, v, gates, state, anchor, initial, norm, offset, mask, reset, chunk_size, residual, grad_clip):
    plan = _plan(q, len(state), state[-1], chunk_size)
    if is_ragged(q.shape[1], plan.block, offset, mask, reset):
        groups = torch.library.get_ctx().new_dynamic_size()
    else:
        groups = -(-(q.shape[1] // plan.block) // planning.group_size(plan.block, chunk_size, state))
    running = [s.new_empty(s.shape[0], s.shape[1] // 2, s.shape[2]) for s in state]
    kept = [s.new_empty(groups, *s.shape) for s in state]
    end_offset = q.new_empty(q.shape[0], dtype=torch.int64)
    loss = gates.new_empty(q.shape[:3])
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    return y, loss, end_offset, [torch.empty_like(s) for s in state], running, kept


@torch.library.custom_op("titanslab::fused_memory_backward", mutates_args=())
def fused_memory_backward(
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
    residual: bool,
    grad_clip: float | None,
) -> list[Tensor]:
    """Gradients of q, k, v, gates, then of each state, anchor, initial and norm tensor."""
    from titanslab.memory.kernels.passes import backward

    form = Form(len(initial), residual, bool(norm), grad_clip)
    with torch.autocast(q.device.type, enabled=False):
        g = backward(
            dy, d_state, d_running, q, k, v, gates, anchor, initial, norm, offset, mask, reset, kept, chunk_size,
            form, _plan(q, form.depth, initial[-1], chunk_size),
        )  # fmt: skip
    return [g.q, g.k, g.v, g.gates, *g.state, *g.anchor, *g.initial, *g.norm]


@fused_memory_backward.register_fake
def _(dy, d_state, d_running, q, k, v, gates, anchor, initial, norm, *args):
    like = (q, k, v, gates, *d_state, *anchor, *initial, *norm)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]


def _save(ctx, inputs, output):
    q, k, v, gates, _, anchor, initial, norm, offset, mask, reset, *static = inputs
    ctx.counts, ctx.static = (len(anchor), len(initial), len(norm)), static
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, gates, offset, mask, reset, *anchor, *initial, *norm, *output[5])


def _differentiate(ctx, dy, d_loss, d_offset, d_end, d_running, d_kept):
    q, k, v, gates, offset, mask, reset, *rest = ctx.saved_tensors
    anchors, depth, norms = ctx.counts
    anchor, initial = rest[:anchors], rest[anchors : anchors + depth]
    norm, kept = rest[anchors + depth : anchors + depth + norms], rest[anchors + depth + norms :]
    dy = torch.zeros_like(q) if dy is None else dy
    d_end = [torch.zeros_like(i) if d is None else d for d, i in zip(d_end, initial, strict=True)]
    d_running = [
        i.new_zeros(i.shape[0], i.shape[1] // 2, i.shape[2]) if d is None else d
        for d, i in zip(d_running, initial, strict=True)
    ]
    grads = fused_memory_backward(
        dy, d_end, d_running, q, k, v, gates, anchor, initial, norm, offset, mask, reset, kept, *ctx.static
    )
    dq, dk, dv, d_gates, *grads = grads
    d_state, grads = grads[:depth], grads[depth:]
    d_anchor, grads = grads[:anchors], grads[anchors:]
    d_initial, d_norm = grads[:depth], grads[depth:]
    return dq, dk, dv, d_gates, d_state, d_anchor, d_initial, d_norm, *[None] * 6


fused_memory.register_autograd(_differentiate, setup_context=_save)


def _stack(weights: tuple[Tensor, ...], momentum: tuple[Tensor, ...], batch: int) -> list[Tensor]:
    """Per layer `[B*H, 2 d_in, d_out]`: weights above momentum."""
    pairs = zip(weights, momentum, strict=True)
    return [torch.cat([w, s], 2).expand(batch, -1, -1, -1).flatten(0, 1).contiguous() for w, s in pairs]


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState | None,
    initial: MemoryState,
    chunk_size: int,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, MemoryState, Tensor]:
    """Same arguments and results as `chunked`, but q, k, v in the caller's dtype: bfloat16 products where they are.

    Raises:
        RuntimeError: what the kernels cannot run, why, and what to use instead.
    """
    runs, reason = planning.supported(q.device, q.dtype, network, q.shape[3], chunk_size)
    if not runs:
        raise RuntimeError(f"backend 'triton': {reason}; use 'chunked' or 'auto'")
    batch, heads = q.shape[0], q.shape[2]
    begin = _stack(initial.weights, initial.momentum, batch)
    if state is None:
        start, anchor, offset = begin, [], None
    else:
        start = _stack(state.weights, state.momentum, batch)
        anchor, offset = [c.flatten(0, 1).contiguous() for c in state.chunk_weights], state.offset
    norm = [] if params.norm_weight is None else [params.norm_weight.contiguous(), params.norm_bias.contiguous()]
    # layers that share their gates share the coefficients too
    shared = all(g is gates[0] for g in gates)
    stacked = torch.stack([torch.stack([g[i][..., 0] for g in gates[: 1 if shared else None]]) for i in range(3)])
    y, loss, end_offset, end, running, _ = fused_memory(
        q, k, v, stacked, start, anchor, begin, norm, offset, mask, reset, chunk_size, network.residual,
        network.grad_clip,
    )  # fmt: skip
    ends = [e.unflatten(0, (batch, heads)).chunk(2, 2) for e in end]
    weights, momentum = tuple(e[0] for e in ends), tuple(e[1] for e in ends)
    chunk_weights = tuple(r.unflatten(0, (batch, heads)) for r in running)
    return y, MemoryState(weights, momentum, chunk_weights, end_offset), loss
