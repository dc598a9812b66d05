"""`backend="triton"`: the fused kernels as custom ops, which `torch.compile` of a model passes through."""

import torch
from torch import Tensor

from titanslab.memory.autograd import register_backward
from titanslab.memory.gpu import plan as planning
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Gates
from titanslab.memory.state import MemoryState


def _plan(q: Tensor, depth: int, last: Tensor, chunk_size: int) -> planning.Plan:
    """From q `[B,T,H,D]` and the last layer's state `[B*H, 2 d_in, D]`."""
    return planning.make_plan(depth, q.shape[3], last.shape[1] // 2, chunk_size, q.shape[1], q.dtype)


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
    from titanslab.memory.gpu.passes import forward

    form = MemoryNetwork(len(state), residual=residual, norm=bool(norm), grad_clip=grad_clip)
    # Triton launches on the current device, which need not be the tensors'
    with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
        return forward(
            q, k, v, gates, state, anchor, initial, norm, offset, mask, reset, chunk_size, form,
            _plan(q, form.depth, state[-1], chunk_size),
        )  # fmt: skip


@fused_memory.register_fake
def _(q, k, v, gates, state, anchor, initial, norm, offset, mask, reset, chunk_size, residual, grad_clip):
    plan = _plan(q, len(state), state[-1], chunk_size)
    if offset is None and mask is None and reset is None:
        blocks = -(-q.shape[1] // plan.block)
        groups = -(-blocks // planning.group_size(plan.block, state))
    else:
        groups = torch.library.get_ctx().new_dynamic_size()  # type: ignore[assignment]
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
    from titanslab.memory.gpu.passes import backward

    form = MemoryNetwork(len(initial), residual=residual, norm=bool(norm), grad_clip=grad_clip)
    # Triton launches on the current device, which need not be the tensors'
    with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
        g = backward(
            dy, d_state, d_running, q, k, v, gates, anchor, initial, norm, offset, mask, reset, kept,
            chunk_size, form, _plan(q, form.depth, initial[-1], chunk_size),
        )  # fmt: skip
    return [g.q, g.k, g.v, g.gates, *g.state, *g.anchor, *g.initial, *g.norm]


@fused_memory_backward.register_fake
def _(dy, d_state, d_running, q, k, v, gates, anchor, initial, norm, *args):
    like = (q, k, v, gates, *d_state, *anchor, *initial, *norm)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]


register_backward(fused_memory, fused_memory_backward)


@torch.library.custom_op("titanslab::fused_memory_step", mutates_args=())
def fused_memory_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    weights: list[Tensor],
    momentum: list[Tensor],
    anchor: list[Tensor],
    initial: list[Tensor],
    norm: list[Tensor],
    offset: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    residual: bool,
    grad_clip: float | None,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """One token, without gradients: no copies of the state, no look at the data from the host.

    Args:
        q, k, v: `[B,H,D]`; gates: `[3, 1 or L, B, H]`.
        weights, momentum, anchor: `[B,H,d_in,d_out]` per layer.
        initial: weights, then momentum, like them; or nothing where `reset` is None. mask, reset: bool `[B]`.

    Returns:
        y, inner loss `[B,H]`, and the new weights, momentum and anchor.
    """
    from titanslab.memory.gpu.step import step

    form = MemoryNetwork(len(weights), residual=residual, norm=bool(norm), grad_clip=grad_clip)
    state = (weights, momentum, anchor)
    with torch.cuda.device_of(q):
        return step(q, k, v, gates, *state, initial, norm, offset, mask, reset, chunk_size, form)


@fused_memory_step.register_fake
def _(q, k, v, gates, weights, momentum, anchor, *args):
    new = [[torch.empty_like(t) for t in group] for group in (weights, momentum, anchor)]
    return torch.empty_like(q), gates.new_empty(q.shape[:2]), *new


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
    """Same arguments and results as `chunked`, but q, k, v in the caller's dtype, which the products use.

    Raises:
        RuntimeError: what the kernels cannot run, why, and what to use instead.
    """
    runs, reason = planning.supported(q.device, q.dtype, network, q.shape[3], chunk_size)
    if not runs:
        raise RuntimeError(f"backend 'triton': {reason}; use 'chunked' or 'auto'")
    batch, heads = q.shape[0], q.shape[2]
    norm = [n for n in (params.norm_weight, params.norm_bias) if n is not None]
    # layers that share their gates share the coefficients too
    layers = gates[:1] if all(g is gates[0] for g in gates) else gates
    stacked = torch.stack([torch.stack([g[i][..., 0] for g in layers]) for i in range(3)])
    if q.shape[1] == 1:
        before = initial.at_boundary().expand(batch) if state is None else state
        inputs = (q, k, v, stacked, *norm, *(t for s in (before, initial) for t in s.tensors().values()))
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
            return _step(q, k, v, stacked, network, norm, before, initial, chunk_size, mask, reset)
    begin = _stack(initial.weights, initial.momentum, batch)
    if state is None:
        start, anchor, offset = begin, [], None
    else:
        start = _stack(state.weights, state.momentum, batch)
        anchor, offset = [c.flatten(0, 1).contiguous() for c in state.chunk_weights], state.offset
    y, loss, end_offset, end, running, _ = fused_memory(
        q, k, v, stacked, start, anchor, begin, norm, offset, mask, reset, chunk_size, network.residual,
        network.grad_clip,
    )  # fmt: skip
    ends = [e.unflatten(0, (batch, heads)).chunk(2, 2) for e in end]
    weights, momentum = tuple(e[0] for e in ends), tuple(e[1] for e in ends)
    chunk_weights = tuple(r.unflatten(0, (batch, heads)) for r in running)
    return y, MemoryState(weights, momentum, chunk_weights, end_offset), loss


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    network: MemoryNetwork,
    norm: list[Tensor],
    state: MemoryState,
    initial: MemoryState,
    chunk_size: int,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, MemoryState, Tensor]:
    """`fused` for one token."""
    batch = q.shape[0]
    q, k, v = q[:, 0], k[:, 0], v[:, 0]
    real, fresh = (None if x is None else x[:, 0].contiguous() for x in (mask, reset))
    groups = [list(g) for g in (state.weights, state.momentum, state.chunk_weights)]
    begin = []
    if fresh is not None:
        begin = [t.expand(batch, *t.shape[1:]) for t in (*initial.weights, *initial.momentum)]
    y, loss, weights, momentum, anchor = fused_memory_step(
        q, k, v, gates[:, :, :, 0], *groups, begin, norm, state.offset, real, fresh,
        chunk_size, network.residual, network.grad_clip,
    )  # fmt: skip
    offset = state.offset
    if fresh is not None:
        offset = offset.masked_fill(fresh if real is None else fresh & real, 0)
    if real is None:
        offset = (offset + 1) % chunk_size
    else:
        loss, offset = loss.masked_fill(~real[:, None], 0), (offset + real.to(offset.dtype)) % chunk_size
    return y[:, None], MemoryState(tuple(weights), tuple(momentum), tuple(anchor), offset), loss[:, None]
