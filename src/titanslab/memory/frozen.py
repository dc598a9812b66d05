"""Reading with writes frozen: every token asks the memory, none changes it."""

import math

import torch
from torch import Tensor

from titanslab.memory.network import MemoryNetwork, MemoryParams, apply_network
from titanslab.memory.state import MemoryState, where_rows


def check_writes(learn: bool | None, write_scale: float | None) -> None:
    """ValueError for a scale that is no size, or that frozen writes would ignore; None = not said."""
    if write_scale is None:
        return
    if not (isinstance(write_scale, int | float) and 0 <= write_scale < math.inf):
        raise ValueError(f"write_scale must be a number of at least 0, got {write_scale!r}")
    if learn is False and write_scale != 1.0:
        raise ValueError(f"write_scale is {write_scale}, but with learn=False nothing is written; give one of them")


def read_frozen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState | None,
    initial: MemoryState | None,
    reset: Tensor | None = None,
    *,
    return_loss: bool = False,
) -> tuple[Tensor, MemoryState, Tensor | None]:
    """`y_t = f(q_t; M)` with M as it is: no write, no forgetting, no step in the chunk.

    Args:
        q, k, v: `[B,T,H,D]`.
        network, params: of the memory.
        state: the memory; None = `initial`.
        initial: where documents start, one row or B; None = M_0.
        reset: bool `[B,T]`, first tokens of documents: from there on the row's memory is `initial`.
        return_loss: also the inner loss `[B,T,H]` each token would have had.

    Returns:
        y `[B,T,H,D]`; the very state that was given, but for rows in which a document began; the loss or None.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    norm = tuple(None if p is None else p.to(dtype) for p in (params.norm_weight, params.norm_bias))
    params = MemoryParams(tuple(w.to(dtype) for w in params.weights), *norm)
    begun = None if reset is None else reset.cumsum(1) > 0
    if state is None or begun is not None:
        start = (MemoryState.initial(params, 1) if initial is None else initial).at_boundary()
        start = start if start.batch_size == q.shape[0] else start.expand(q.shape[0])
    memory = start if state is None else state

    def read(x: Tensor) -> Tensor:
        x = x.to(dtype).transpose(1, 2)
        y = _apply(x, memory, network, params)
        if begun is not None:
            y = torch.where(begun[:, None, :, None], _apply(x, start, network, params), y)
        return y.transpose(1, 2)

    with torch.autocast(q.device.type, enabled=False):
        y = read(q).to(q.dtype)
        loss = (read(k) - v.to(dtype)).square().sum(-1).detach() if return_loss else None
    if begun is None:
        return y, memory, loss
    ended = begun[:, -1]
    weights, momentum, chunk_weights = (
        tuple(where_rows(ended, a, b) for a, b in zip(getattr(start, name), getattr(memory, name), strict=True))
        for name in ("weights", "momentum", "chunk_weights")
    )
    offset = where_rows(ended, start.offset, memory.offset)
    return y, MemoryState(weights, momentum, chunk_weights, offset), loss


def _apply(x: Tensor, state: MemoryState, network: MemoryNetwork, params: MemoryParams) -> Tensor:
    return apply_network(x, tuple(w.to(x.dtype) for w in state.weights), network, params)
