"""The exact parallel form over a whole sequence, with a hand-written backward (docs/exact_form.md).

Forward keeps the state every few chunks, backward recomputes in between. One opaque custom op, so `torch.compile` of
a model neither breaks at it nor unrolls it.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from titanslab.memory.autograd import register_backward
from titanslab.memory.chunked import compiled as chunk_compiled
from titanslab.memory.chunked import loop as chunk_loop
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Gates
from titanslab.memory.rows import Schedule, count_blocks, is_aligned, make_schedule
from titanslab.memory.state import MemoryState

# tokens between kept states at chunk 1, falling with the chunk's square, and the fewest; most chunks, and bytes that
# recomputing them may hold: a state a chunk leaves the processor's cache after a few, long chunks have few to keep
GROUP_VOLUME = 1024 * 16**2
GROUP_TOKENS = 128
GROUP_CHUNKS = 64
GROUP_BYTES = 192 << 20


def group_size(chunks: int, chunk_size: int, state_bytes: int) -> int:
    """Chunks between two kept states."""
    tokens = max(GROUP_TOKENS, GROUP_VOLUME // chunk_size**2)
    return max(1, min(chunks, GROUP_CHUNKS, tokens // chunk_size, max(2, GROUP_BYTES // state_bytes)))


def implementation(device: torch.device, dtype: torch.dtype, depth: int) -> tuple[ModuleType, str]:
    """The module that runs the chunk loop (compiled kernel, or PyTorch operations as they are or compiled), and why."""
    if device.type == "cpu":
        from titanslab.memory.cpu import chunked as native

        fits, reason = native.available(device, dtype, depth)
        if fits:
            return native, reason
    else:
        reason = f"PyTorch operations on {device.type}"
    if chunk_compiled.wanted(device):
        written = chunk_compiled.written()
        return chunk_compiled, f"{reason}, through torch.compile" + (f", but not {written}" if written else "")
    return chunk_loop, reason


def _plan(
    q: Tensor,
    state: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    block: int,
) -> tuple[Schedule | None, int]:
    """Layout of the tokens in blocks of chunks (None where every block is full) and blocks per group."""
    schedule = None
    if not is_aligned(q.shape[1], block, offset, mask, reset):
        start = torch.zeros(q.shape[0], dtype=torch.int64, device=q.device) if offset is None else offset
        schedule = make_schedule(q.shape[1], chunk_size, start, mask, reset, block)
    blocks = q.shape[1] // block if schedule is None else schedule.chunks
    return schedule, group_size(blocks, block, sum(s.numel() * s.element_size() for s in state))


def _like(x: Tensor) -> Tensor:
    """What the loops return for `x`: contiguous, however `x` lies."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("titanslab::chunked_memory", mutates_args=())
def chunked_memory(
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
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The chunk loop as one op.

    Args:
        q, k, v: `[B,T,H,D]`; gates: theta, eta, alpha `[3, 1 or L, B, T, H]`.
        state, initial: per layer `[B*H, 2 d_in, d_out]`, weights above momentum.
        anchor: per layer `[B*H, d_in, d_out]`, or nothing where every row starts at a chunk boundary.
        keep: whether a backward will follow.
        norm: weight and bias `[H, D]`, or nothing.

    Returns:
        y, inner loss `[B,T,H]`, offset `[B]`, end state, end anchor (nothing where aligned), kept states (empty
        where that would be the start alone: `kept_states` puts it in).
    """
    loop, _ = implementation(q.device, q.dtype, len(state))
    schedule, group = _plan(q, state, offset, mask, reset, chunk_size, loop.block_size(chunk_size))
    with torch.autocast(q.device.type, enabled=False):
        y, loss, end, running, kept, end_offset = loop.forward(
            q, k, v, gates, state, anchor, initial, norm, schedule, chunk_size, group, residual, grad_clip, keep
        )
    if schedule is None and offset is None and kept[0].shape[0] == 1:  # what the fake below knows too
        kept = [*(s.new_empty(0) for s in state), *kept[len(state) :]]
    return y, loss, end_offset, end, running, kept


@chunked_memory.register_fake
def _(q, k, v, gates, state, anchor, initial, norm, offset, mask, reset, chunk_size, residual, grad_clip, keep):
    loss = q.new_empty(q.shape[:3])
    end_offset = q.new_empty(q.shape[0], dtype=torch.int64)
    loop = implementation(q.device, q.dtype, len(state))[0]
    block = loop.block_size(chunk_size)
    aligned = offset is None and is_aligned(q.shape[1], block, None, mask, reset)
    if offset is None and mask is None and reset is None:
        blocks = count_blocks(q.shape[1], chunk_size, block)
        size = group_size(blocks, block, sum(s.numel() * s.element_size() for s in state))
        groups = -(-blocks // size)
    else:
        groups = torch.library.get_ctx().new_dynamic_size()  # type: ignore[assignment]
    running = [] if aligned else [s.new_empty(s.shape[0], s.shape[1] // 2, s.shape[2]) for s in state]
    empty = aligned and groups == 1
    kept = [s.new_empty(0) if empty else s.new_empty(groups, *s.shape) for s in state]
    shape = loop.kept_activations(q, initial, block, blocks, grad_clip) if keep and aligned else None
    if shape is not None:
        kept.append(q.new_empty(shape))
    return _like(q), loss, end_offset, [_like(s) for s in state], running, kept


@torch.library.custom_op("titanslab::chunked_memory_backward", mutates_args=())
def chunked_memory_backward(
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
    loop, _ = implementation(q.device, q.dtype, len(initial))
    schedule, group = _plan(q, initial, offset, mask, reset, chunk_size, loop.block_size(chunk_size))
    arguments = (
        q,
        k,
        v,
        gates,
        anchor,
        initial,
        norm,
        schedule,
        kept,
        chunk_size,
        group,
        residual,
        grad_clip,
    )
    with torch.autocast(q.device.type, enabled=False):
        dq, dk, dv, d_gates, *lists = loop.backward(dy, d_state, d_running, *arguments)
    return [dq, dk, dv, d_gates, *(t for part in lists for t in part)]


@chunked_memory_backward.register_fake
def _(dy, d_state, d_running, q, k, v, gates, anchor, initial, norm, *args):
    return [_like(x) for x in (q, k, v, gates, *d_state, *anchor, *initial, *norm)]


register_backward(chunked_memory, chunked_memory_backward)


def _stack(weights: tuple[Tensor, ...], momentum: tuple[Tensor, ...], batch: int) -> list[Tensor]:
    pairs = zip(weights, momentum, strict=True)
    return [torch.cat([w, s], 2).expand(batch, -1, -1, -1).flatten(0, 1) for w, s in pairs]


def chunked(
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
    op: Callable[..., tuple] | None = None,
) -> tuple[Tensor, MemoryState, Tensor]:
    """Same arguments and results as `reference`; `state` None (start at `initial`) spares a look at its offsets.

    Where whole chunks follow a chunk boundary, the state that comes back has its weights for chunk_weights.

    `op`: what runs the loop, with the arguments and results of `chunked_memory`, the default.
    """
    batch, heads = q.shape[0], q.shape[2]
    begin = _stack(initial.weights, initial.momentum, batch)
    if state is None:
        start, anchor, offset = begin, [], None
    else:
        start = state.stacked or _stack(state.weights, state.momentum, batch)
        anchor, offset = [c.flatten(0, 1) for c in state.chunk_weights], state.offset
        if not torch.compiler.is_compiling() and is_aligned(q.shape[1], chunk_size, offset, mask, reset):
            anchor, offset = [], None
    norm = [] if params.norm_weight is None else [params.norm_weight, params.norm_bias]
    # layers that share their gates share the coefficients too
    shared = all(a is b for g in gates for a, b in zip(g, gates[0], strict=True))
    stacked = torch.stack([torch.stack([g[i][..., 0] for g in gates[: 1 if shared else None]]) for i in range(3)])
    y, loss, end_offset, end, running, _ = (op or chunked_memory)(
        q,
        k,
        v,
        stacked,
        start,
        anchor,
        begin,
        norm,
        offset,
        mask,
        reset,
        chunk_size,
        network.residual,
        network.grad_clip,
        torch.is_grad_enabled(),
    )
    ends = [e.unflatten(0, (batch, heads)).chunk(2, 2) for e in end]
    weights, momentum = tuple(e[0] for e in ends), tuple(e[1] for e in ends)
    chunk_weights = tuple(r.unflatten(0, (batch, heads)) for r in running) or weights
    return y, MemoryState(weights, momentum, chunk_weights, end_offset, (tuple(end), weights, momentum)), loss
