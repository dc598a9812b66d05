"""The exact parallel form over a whole sequence, with a hand-written backward (docs/exact_form.md; paper §3.2).

Forward keeps the state every few chunks, backward recomputes in between. One opaque custom op, so that `torch.compile`
of a model neither breaks at it nor unrolls it.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs, register_backward
from titanslab.memory.backends import BASE_CHUNK, chunk_loop
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import Gates, Tokens
from titanslab.memory.rows import count_blocks, make_schedule
from titanslab.memory.state import MemoryState

# the modules that run the loop, by the name that `backends.py` chooses
LOOPS = {"torch": "chunked.loop", "compiled": "chunked.compiled", "cpu": "cpu.chunked"}
# tokens between two kept states at chunk size 1; the number falls with the square of the chunk size
GROUP_VOLUME = 1024 * 16**2
# fewest tokens between two kept states
GROUP_TOKENS = 128
# most chunks between two kept states
GROUP_CHUNKS = 64
# most bytes of the states that backward recomputes at once
GROUP_BYTES = 192 << 20


def group_size(chunks: int, chunk_size: int, state_bytes: int) -> int:
    """Chunks between two kept states.

    A state at every chunk leaves the processor's cache after a few chunks; long chunks have few states to keep.
    """
    tokens = max(GROUP_TOKENS, GROUP_VOLUME // chunk_size**2)
    return max(1, min(chunks, GROUP_CHUNKS, tokens // chunk_size, max(2, GROUP_BYTES // state_bytes)))


def is_aligned(tokens: int, chunk_size: int, offset: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> bool:
    """True where every chunk is full and every row starts at a boundary, so no schedule is needed."""
    if mask is not None or reset is not None or tokens % chunk_size:
        return False
    return offset is None or not bool(offset.any())


def _loop(name: str, q: Tensor, depth: int) -> ModuleType:
    """The module that runs the loop; "" stands for the one that `backends.py` takes where nothing was measured."""
    return import_module(f"titanslab.memory.{LOOPS[name or chunk_loop(q.device, q.dtype, depth)[0]]}")


def state_bytes(state: list[Tensor]) -> int:
    return sum(s.numel() * s.element_size() for s in state)


def _like(x: Tensor) -> Tensor:
    """An empty tensor as the loops return it for `x`: contiguous, whatever the strides of `x`."""
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
    slow: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    residual: bool,
    grad_clip: float | None,
    loop: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The chunk loop as one op.

    Args:
        q, k, v, gates, anchor, initial: as in `Inputs`.
        slow: `norm` and then `base` of `Inputs`, told apart by their dimensions.
        state: per layer `[B*H, 2 d_in, d_out]`, weights above momentum.
        offset: int64 `[B]`, tokens in the running chunk of each row; None where all are 0.
        loop: a name of `LOOPS`, or "" for the one that `backends.py` takes.
        keep: whether a backward will follow.

    Returns:
        y, inner loss `[B,T,H]`, offset `[B]`, end state, end anchor (empty where aligned), kept states (an empty tensor
        where that would be the start alone: `kept_states` puts it in).
    """
    norm, base = norm_and_base(slow)
    inputs = Inputs(q, k, v, gates, anchor, initial, norm, None, chunk_size, 0, residual, grad_clip, base=base)
    inputs = placed(inputs, loop, offset, mask, reset)
    with torch.autocast(q.device.type, enabled=False):
        y, loss, end, running, kept, end_offset = _loop(loop, q, len(state)).forward(inputs, state, keep)
    if inputs.schedule is None and offset is None and kept[0].shape[0] == 1:  # the fake op below knows the same
        kept = [*(s.new_empty(0) for s in state), *kept[len(state) :]]
    return y, loss, end_offset, end, running, kept


def norm_and_base(slow: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """`norm` and `base` of `Inputs` in a list of both."""
    return [t for t in slow if t.dim() == 2], [t for t in slow if t.dim() == 3]


def placed(inputs: Inputs, loop: str, offset: Tensor | None, mask: Tensor | None, reset: Tensor | None) -> Inputs:
    """`inputs` with the slots of a ragged call, and with the number of blocks between two kept states."""
    module, (batch, tokens, heads, _) = _loop(loop, inputs.q, len(inputs.initial)), inputs.q.shape
    lanes = module.lane_group(batch * heads, [i[0].numel() for i in inputs.initial], inputs.chunk_size)
    if lanes and offset is None and mask is None and reset is None:
        return inputs._replace(group=lanes, lanes=True)
    block = module.block_size(inputs.chunk_size)
    schedule = None
    if not is_aligned(tokens, block, offset, mask, reset):
        start = torch.zeros(batch, dtype=torch.int64, device=inputs.q.device) if offset is None else offset
        schedule = make_schedule(tokens, inputs.chunk_size, start, mask, reset, block)
    blocks = tokens // block if schedule is None else schedule.chunks
    return inputs._replace(schedule=schedule, group=group_size(blocks, block, state_bytes(inputs.initial)))


@chunked_memory.register_fake
def _(q, k, v, gates, state, anchor, initial, slow, offset, mask, reset, chunk_size, residual, grad_clip, loop, keep):
    loss = q.new_empty(q.shape[:3])
    end_offset = q.new_empty(q.shape[0], dtype=torch.int64)
    module = _loop(loop, q, len(state))
    plain = offset is None and mask is None and reset is None
    lanes = plain and module.lane_group(q.shape[0] * q.shape[2], [i[0].numel() for i in initial], chunk_size)
    block = chunk_size if lanes else module.block_size(chunk_size)
    aligned = offset is None and is_aligned(q.shape[1], block, None, mask, reset)
    if plain:
        blocks = count_blocks(q.shape[1], chunk_size, block)
        groups = -(-blocks // (lanes or group_size(blocks, block, state_bytes(state))))
    else:
        groups = torch.library.get_ctx().new_dynamic_size()  # type: ignore[assignment]
    running = [] if aligned else [s.new_empty(s.shape[0], s.shape[1] // 2, s.shape[2]) for s in state]
    empty = (aligned or lanes) and groups == 1
    kept = [s.new_empty(0) if empty else s.new_empty(groups, *s.shape) for s in state]
    shape = module.kept_activations(q, initial, block, blocks, grad_clip) if keep and aligned else None
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
    slow: list[Tensor],
    offset: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    kept: list[Tensor],
    chunk_size: int,
    residual: bool,
    grad_clip: float | None,
    loop: str,
) -> list[Tensor]:
    """Gradients of q, k, v, gates, then of each tensor of state, anchor, initial and slow."""
    norm, base = norm_and_base(slow)
    inputs = Inputs(q, k, v, gates, anchor, initial, norm, None, chunk_size, 0, residual, grad_clip, base=base)
    inputs = placed(inputs, loop, offset, mask, reset)
    with torch.autocast(q.device.type, enabled=False):
        dq, dk, dv, d_gates, *lists = _loop(loop, q, len(initial)).backward(inputs, kept, dy, d_state, d_running)
    lists[2] = lists[2] or [torch.zeros_like(i) for i in initial]
    return [dq, dk, dv, d_gates, *(t for part in lists for t in part)]


@chunked_memory_backward.register_fake
def _(dy, d_state, d_running, q, k, v, gates, anchor, initial, slow, *args):
    return [_like(x) for x in (q, k, v, gates, *d_state, *anchor, *initial, *slow)]


STATIC = 4  # chunk_size, residual, grad_clip, loop
register_backward(chunked_memory, chunked_memory_backward, STATIC)


class Start(NamedTuple):
    """Where a call of the chunk loop starts, in the layout of the op: see the arguments of `chunked_memory`."""

    gates: Tensor
    state: list[Tensor]
    anchor: list[Tensor]
    initial: list[Tensor]
    slow: list[Tensor]
    offset: Tensor | None


def begin(
    gates: Gates | Tensor,
    params: MemoryParams,
    state: MemoryState | None,
    initial: MemoryState,
    batch: int,
    *,
    aligned: bool = False,
) -> Start:
    """Put gates and states into the layout of the op.

    `state` None starts every row at `initial`. `aligned` says that every row is known to start at a chunk boundary.
    """
    stacked = gates if isinstance(gates, Tensor) else stack_gates(gates)
    norm = [n for n in (params.norm_weight, params.norm_bias) if n is not None]
    now = stack(initial, batch) if state is None else state.stacked or stack(state, batch)
    first = now if state is None else stack(initial, batch)
    if state is None or aligned:
        return Start(stacked, now, [], first, norm, None)
    return Start(stacked, now, [c.flatten(0, 1) for c in state.chunk_weights], first, norm, state.offset)


def from_base(start: Start, base: Sequence[Tensor]) -> Start:
    """A start whose states count from `base`, per layer `[H, d_in, d_out]`: the decays act on what is beside it."""
    first = [i - b for i, b in zip(start.initial, _as_states(base, start.initial), strict=True)]
    now = first if start.state is start.initial else to_whole(start.state, [-b for b in base])
    return start._replace(state=now, initial=first, slow=[*start.slow, *base])


def to_whole(states: Sequence[Tensor], base: Sequence[Tensor]) -> list[Tensor]:
    """The inverse, for states, or for weights `[rows, d_in, d_out]`."""
    return [s + b for s, b in zip(states, _as_states(base, states), strict=True)]


def _as_states(base: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The base in the shape of `like`: weights, or states `[rows, 2 d_in, d_out]` without momentum."""
    whole = [
        b if b.shape[1] == s.shape[1] else torch.cat([b, torch.zeros_like(b)], 1)
        for b, s in zip(base, like, strict=False)
    ]
    return [b.repeat(s.shape[0] // b.shape[0], 1, 1) for b, s in zip(whole, like, strict=False)]


def stack_gates(gates: Gates) -> Tensor:
    """theta, eta, alpha as one tensor `[3, 1 or L, B, T, H]`; layers that share their gates share the decays too."""
    shared = all(a is b for g in gates for a, b in zip(g, gates[0], strict=True))
    return torch.stack([torch.stack([g[i][..., 0] for g in gates[: 1 if shared else None]]) for i in range(3)])


def end_state(end: list[Tensor], running: list[Tensor], offset: Tensor, heads: int) -> MemoryState:
    """The state after a call, from the op's results; where no anchor came back, the weights are the anchor."""
    halves = [e.unflatten(0, (-1, heads)).chunk(2, 2) for e in end]
    weights, momentum = tuple(h[0] for h in halves), tuple(h[1] for h in halves)
    chunk_weights = tuple(r.unflatten(0, (-1, heads)) for r in running) or weights
    return MemoryState(weights, momentum, chunk_weights, offset, (tuple(end), weights, momentum))


def stack(state: MemoryState, batch: int) -> list[Tensor]:
    """Per layer `[B*H, 2 d_in, d_out]`, weights above momentum; `state` holds one row or `batch` rows."""
    pairs = zip(state.weights, state.momentum, strict=True)
    return [torch.cat([w, s], 2).expand(batch, -1, -1, -1).flatten(0, 1) for w, s in pairs]


def chunked(
    tokens: Tokens,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState | None,
    initial: MemoryState,
    chunk_size: int,
    loop: str,
    base: Sequence[Tensor] = (),
) -> tuple[Tensor, MemoryState, Tensor]:
    """Arguments and results of `token_loop`, and the name of the `loop`.

    `state` None (start at `initial`) spares a look at the offsets. Where whole chunks follow a chunk boundary, the
    returned state has its weights for chunk_weights.
    """
    q, k, v, gates, mask, reset = tokens
    aligned = False
    if state is not None and not torch.compiler.is_compiling():
        aligned = is_aligned(q.shape[1], chunk_size, state.offset, mask, reset)
    start = begin(gates, params, state, initial, q.shape[0], aligned=aligned)
    if base:
        loop = "torch" if chunk_size < BASE_CHUNK else loop  # few tokens have a shorter chunk than the layer's
        start = from_base(start, base)
    y, loss, offset, end, running, _ = chunked_memory(
        q, k, v, *start, mask, reset, chunk_size, network.residual, network.grad_clip, loop, torch.is_grad_enabled()
    )
    end = to_whole(end, base) if base else end
    return y, end_state(end, running, offset, q.shape[2]), loss
