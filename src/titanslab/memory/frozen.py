"""Reading with writes frozen: every token reads the memory, none changes it."""

from typing import Any

import torch
from torch import Tensor

from titanslab.memory.network import MemoryNetwork, MemoryParams, apply_network
from titanslab.memory.state import MemoryState, where_rows
from titanslab.memory.transforms import transformed


def read_frozen(
    x: Tensor,
    weights: tuple[Tensor, ...],
    network: MemoryNetwork,
    params: MemoryParams,
    start: tuple[Tensor, ...] | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """f(x; M) for `x [B,T,H,D]` with M as it is: no write, no forgetting, no step in the chunk. Eq. 21.

    Args:
        weights: M, one `[B,H,d_in,d_out]` per layer. network, params: of the memory.
        start: weights of where documents start, for B rows or one. reset: bool `[B,T]`, first tokens of documents; from
            there on a row reads `start`.
    """
    dtype, out_dtype = torch.promote_types(x.dtype, torch.float32), x.dtype
    with torch.autocast(x.device.type, enabled=False):
        x, params = x.to(dtype), params.to(dtype)
        y = _read(x, weights, network, params)
        if reset is not None and start is not None:
            rows = tuple(w.expand(x.shape[0], *w.shape[1:]) for w in start)
            y = torch.where((reset.cumsum(1) > 0)[:, :, None, None], _read(x, rows, network, params), y)
    return y.to(out_dtype)


def restart(state: MemoryState, start: MemoryState, reset: Tensor) -> MemoryState:
    """The state with `start` in the rows in which a document begins, `reset [B,T]`."""
    rows, start = reset.any(1), start.at_boundary()
    weights, momentum, anchor = (
        tuple(where_rows(rows, a, b) for a, b in zip(getattr(start, part), getattr(state, part), strict=True))
        for part in ("weights", "momentum", "chunk_weights")
    )
    return MemoryState(weights, momentum, anchor, where_rows(rows, start.offset, state.offset))


def _read(x: Tensor, weights: tuple[Tensor, ...], network: MemoryNetwork, params: MemoryParams) -> Tensor:
    plain = not torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed()
    apply = _apply if plain else _Read.apply
    return apply(network, x, params.norm_weight, params.norm_bias, *(w.to(x.dtype) for w in weights))


def _apply(network: MemoryNetwork, x: Tensor, *tensors: Any) -> Tensor:
    norm_weight, norm_bias, *weights = tensors
    params = MemoryParams(tuple(weights), norm_weight, norm_bias)
    return apply_network(x.transpose(1, 2), params.weights, network, params).transpose(1, 2)


class _Read(torch.autograd.Function):
    """The read that holds its inputs alone: backward computes the hidden layers, several times as wide, again."""

    @staticmethod
    def forward(ctx: Any, network: MemoryNetwork, x: Tensor, *tensors: Any) -> Tensor:
        ctx.network = network
        ctx.save_for_backward(x, *tensors)
        return _apply(network, x, *tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        needed, again = ctx.needs_input_grad[1:], torch.is_grad_enabled()  # again: there may be a second derivative
        with torch.enable_grad(), torch.autocast(dy.device.type, enabled=False):
            saved = zip(ctx.saved_tensors, needed, strict=True)
            inputs = [t if t is None or (again and need) else t.detach().requires_grad_(need) for t, need in saved]
            y = _apply(ctx.network, *inputs)  # type: ignore[arg-type]
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again))
        return None, *(next(found) if t is not None and t.requires_grad else None for t in inputs)
