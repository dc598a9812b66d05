"""Reading with writes frozen: every token asks the memory, none changes it."""

import math
from typing import Any

import torch
from torch import Tensor

from titanslab.memory.network import MemoryNetwork, MemoryParams, apply_network
from titanslab.memory.state import MemoryState, where_rows


def check_writes(learn: bool | None, write_scale: float | None) -> None:
    """ValueError for a scale that is no size, or that frozen writes would ignore; None = not said."""
    if write_scale is None:
        return
    if not (isinstance(write_scale, (int, float)) and 0 <= write_scale < math.inf):
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
        x = x.to(dtype)
        y = _ask(x, memory, network, params)
        return y if begun is None else torch.where(begun[:, :, None, None], _ask(x, start, network, params), y)

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


def _ask(x: Tensor, state: MemoryState, network: MemoryNetwork, params: MemoryParams) -> Tensor:
    """f(x; M) for `x [B,T,H,D]`."""
    weights = tuple(w.to(x.dtype) for w in state.weights)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Ask.apply(network, x, params.norm_weight, params.norm_bias, *weights)
    return _apply(network, x, params.norm_weight, params.norm_bias, weights)


def _apply(
    network: MemoryNetwork, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weights: tuple[Tensor, ...]
) -> Tensor:
    params = MemoryParams((), norm_weight, norm_bias)
    return apply_network(x.transpose(1, 2), weights, network, params).transpose(1, 2)


class _Ask(torch.autograd.Function):
    """The read with nothing held but its inputs: the hidden layers, several times as wide, are computed again."""

    @staticmethod
    def forward(ctx: Any, network: MemoryNetwork, x: Tensor, *tensors: Any) -> Tensor:
        ctx.network = network
        ctx.save_for_backward(x, *tensors)
        weight, bias, *weights = tensors
        return _apply(network, x, weight, bias, tuple(weights))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad(), torch.autocast(dy.device.type, enabled=False):
            saved = zip(ctx.saved_tensors, needed, strict=True)
            inputs = [None if t is None else t.detach().requires_grad_(need) for t, need in saved]
            x, weight, bias, *weights = inputs
            assert x is not None
            y = _apply(ctx.network, x, weight, bias, tuple(weights))  # type: ignore[arg-type]
        asked = [t for t in inputs if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(y, asked, dy))
        return None, *(next(found) if t is not None and t.requires_grad else None for t in inputs)
