"""`backend="triton"`: the fused kernels as custom ops, which `torch.compile` of a model does not trace into."""

from collections.abc import Sequence

import torch
from torch import Tensor

from titanslab.memory.autograd import register_backward
from titanslab.memory.chunked.op import begin, end_state, from_base, norm_and_base, stack_gates, to_whole
from titanslab.memory.gpu import plan as planning
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Tokens
from titanslab.memory.state import MemoryState


def _plan(q: Tensor, depth: int, last: Tensor, chunk_size: int) -> planning.Plan:
    """Plan for q `[B,T,H,D]` and the last layer's state `last [B*H, 2 d_in, D]`."""
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
    slow: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    residual: bool,
    grad_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The memory over a whole sequence. Arguments as in `chunked_memory`; q, k, v may be bfloat16.

    Where `slow` holds a base, anchors count from it too, those of the arguments and that of the result.

    Returns:
        y `[B,T,H,D]` in the dtype of q, inner loss `[B,T,H]`, offset `[B]`, state and anchor after the last token,
        and the states kept for backward, one per group of blocks.
    """
    from titanslab.memory.gpu.passes import forward

    norm, base = norm_and_base(slow)
    form = MemoryNetwork(len(state), residual=residual, norm=bool(norm), grad_clip=grad_clip)
    # Triton launches on the current device, which may not be that of the tensors
    with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
        return forward(
            q, k, v, gates, state, anchor, initial, norm, base, offset, mask, reset, chunk_size, form,
            _plan(q, form.depth, state[-1], chunk_size),
        )  # fmt: skip


@fused_memory.register_fake
def _(q, k, v, gates, state, anchor, initial, slow, offset, mask, reset, chunk_size, residual, grad_clip):
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
    slow: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    kept: list[Tensor],
    chunk_size: int,
    residual: bool,
    grad_clip: float | None,
) -> list[Tensor]:
    """Gradients of q, k, v and gates, then of each tensor of state, anchor, initial and slow."""
    from titanslab.memory.gpu.passes import backward

    norm, base = norm_and_base(slow)
    form = MemoryNetwork(len(initial), residual=residual, norm=bool(norm), grad_clip=grad_clip)
    # Triton launches on the current device, which may not be that of the tensors
    with torch.autocast(q.device.type, enabled=False), torch.cuda.device_of(q):
        g = backward(
            dy, d_state, d_running, q, k, v, gates, anchor, initial, norm, base, offset, mask, reset, kept,
            chunk_size, form, _plan(q, form.depth, initial[-1], chunk_size),
        )  # fmt: skip
    return [g.q, g.k, g.v, g.gates, *g.state, *g.anchor, *g.initial, *g.norm, *g.base]


@fused_memory_backward.register_fake
def _(dy, d_state, d_running, q, k, v, gates, anchor, initial, slow, *args):
    like = (q, k, v, gates, *d_state, *anchor, *initial, *slow)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]


register_backward(fused_memory, fused_memory_backward, static=3)


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
    slow: list[Tensor],
    offset: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    residual: bool,
    grad_clip: float | None,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """One token without gradients. The new state goes straight to its own tensors; the host reads no value back.

    Args:
        q, k, v: `[B,H,D]`; gates: `[3, 1 or L, B, H]`.
        weights, momentum, anchor: `[B,H,d_in,d_out]` per layer.
        initial: weights, then momentum of a document's start, in the same shapes; empty if `reset` is None.
        slow: as in `fused_memory`; states and anchors do not count from the base.
        mask, reset: bool `[B]`.

    Returns:
        y, inner loss `[B,H]`, and the new weights, momentum and anchor.
    """
    from titanslab.memory.gpu.step import step

    norm, base = norm_and_base(slow)
    form = MemoryNetwork(len(weights), residual=residual, norm=bool(norm), grad_clip=grad_clip)
    state = (weights, momentum, anchor)
    with torch.cuda.device_of(q):
        return step(q, k, v, gates, *state, initial, norm, base, offset, mask, reset, chunk_size, form)


@fused_memory_step.register_fake
def _(q, k, v, gates, weights, momentum, anchor, *args):
    new = [[torch.empty_like(t) for t in group] for group in (weights, momentum, anchor)]
    return torch.empty_like(q), gates.new_empty(q.shape[:2]), *new


def fused(
    tokens: Tokens,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState | None,
    initial: MemoryState,
    chunk_size: int,
    base: Sequence[Tensor] = (),
) -> tuple[Tensor, MemoryState, Tensor]:
    """Arguments and results as in `chunked`; q, k, v keep the caller's dtype, in which the products are computed.

    Raises:
        RuntimeError: the kernels cannot run this call. The message gives the reason and a backend that can.
    """
    q, k, v, gates, mask, reset = tokens
    runs, reason = planning.supported(q.device, q.dtype, network, q.shape[3], chunk_size)
    if not runs:
        raise RuntimeError(f"backend 'triton': {reason}; use 'chunked' or 'auto'")
    if q.shape[1] == 1:
        before = initial.at_boundary().expand(q.shape[0]) if state is None else state
        rows = (gate for row in gates for gate in row)
        inputs = (q, k, v, *rows, *params.norm, *base, *(t for s in (before, initial) for t in s.tensors().values()))
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
            return _step(tokens, network, params, before, initial, chunk_size, base)
    start = begin(gates, params, state, initial, q.shape[0], aligned=False)
    if base:
        start = from_base(start, base)
        start = start._replace(anchor=to_whole(start.anchor, [-b for b in base]))
    lists = ([t.contiguous() for t in part] for part in start[1:5])
    y, loss, offset, end, running, _ = fused_memory(
        q, k, v, start.gates, *lists, start.offset, mask, reset, chunk_size, network.residual, network.grad_clip
    )
    if base:
        end, running = to_whole(end, base), to_whole(running, base)
    return y, end_state(end, running, offset, q.shape[2]), loss


def _step(
    tokens: Tokens,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState,
    initial: MemoryState,
    chunk_size: int,
    base: Sequence[Tensor],
) -> tuple[Tensor, MemoryState, Tensor]:
    """`fused` for one token without gradients."""
    q, k, v = (x[:, 0] for x in tokens[:3])
    gates = stack_gates(tokens.gates)[:, :, :, 0]
    real, fresh = (None if x is None else x[:, 0].contiguous() for x in (tokens.mask, tokens.reset))
    groups = [list(g) for g in (state.weights, state.momentum, state.chunk_weights)]
    first = []
    if fresh is not None:
        first = [t.expand(q.shape[0], *t.shape[1:]) for t in (*initial.weights, *initial.momentum)]
    y, loss, weights, momentum, anchor = fused_memory_step(
        q, k, v, gates, *groups, first, [*params.norm, *base], state.offset, real, fresh, chunk_size, network.residual,
        network.grad_clip,
    )  # fmt: skip
    offset = state.offset
    if fresh is not None:
        offset = offset.masked_fill(fresh if real is None else fresh & real, 0)
    if real is None:
        offset = (offset + 1) % chunk_size
    else:
        loss, offset = loss.masked_fill(~real[:, None], 0), (offset + real.to(offset.dtype)) % chunk_size
    return y[:, None], MemoryState(tuple(weights), tuple(momentum), tuple(anchor), offset), loss[:, None]
