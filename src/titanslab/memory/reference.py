"""The definition: one token at a time, gradients by autograd on the inner loss (paper eqs. 9-15).

Slow on purpose. Every other backend is tested against this file, in float64, outputs and gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.network import NORM_EPS, MemoryNetwork, MemoryParams, apply_network, last_product, output
from titanslab.memory.state import MemoryState, where_rows

# per layer (theta, eta, alpha), each [B,T,H,1]; alpha may be [B,T,H,d_in]
Gates = list[tuple[Tensor, Tensor, Tensor]]


class Tokens(NamedTuple):
    """The tokens of one call, as every backend takes them.

    q, k, v: `[B,T,H,D]`. gates: by layer of the memory. mask, reset: bool `[B,T]` or None, as in `neural_memory`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Gates
    mask: Tensor | None
    reset: Tensor | None


def plain_norm(z: Tensor) -> Tensor:
    """LayerNorm without its affine part, of operations that can be differentiated any number of times."""
    centred = z - z.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)


def inner_gradient(
    k: Tensor, v: Tensor, weights: tuple[Tensor, ...], network: MemoryNetwork, params: MemoryParams
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradient in W of `||f(k; W) - v||^2` for one token, itself differentiable, and the loss.

    Args:
        k, v: `[B,H,D]`.
        weights: tuple of `[B,H,d_in,d_out]`.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "backend 'reference' takes gradients as it reads, which inference_mode forbids; use torch.no_grad(), or "
            "another backend"
        )
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        # Use views: k may depend on the weights too, and the inner gradient takes k as constant.
        weights = tuple(w.view_as(w) if w.requires_grad else w.detach().requires_grad_() for w in weights)
        z = last_product(k.unsqueeze(2), weights)
        # PyTorch's LayerNorm has a wrong third derivative on a CPU, which a second derivative of the outputs needs.
        prediction = output(k.unsqueeze(2), z, network, params, plain_norm)
        loss = (prediction - v.unsqueeze(2)).square().sum((-1, -2))  # Eq. 12, summed over D
        (seed,) = torch.autograd.grad(loss.sum(), z, create_graph=outer)
        if network.grad_clip is not None:
            size, limit = seed.norm(dim=-1, keepdim=True), network.grad_clip
            seed = torch.where(size > limit, seed * (limit / size.clamp_min(limit)), seed)  # finite gradients at 0
        grads = torch.autograd.grad(z, weights, seed, create_graph=outer)
    return grads, loss if outer else loss.detach()


def token_loop(
    gradient: Callable[..., tuple[Sequence[Tensor], Tensor]],
    tokens: Tokens,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState,
    initial: MemoryState,
    chunk_size: int,
    base: Sequence[Tensor] = (),
) -> tuple[Tensor, MemoryState, Tensor]:
    """Outputs `[B,T,H,D]`, the new state and the inner loss `[B,T,H]`; arguments as in `neural_memory`.

    `gradient` has the arguments and results of `inner_gradient`. `base`: per layer `[H,d_in,d_out]`, the weights to
    which the memory forgets; none = 0.
    """
    q, k, v, gates, mask, reset = tokens
    weights, momentum, anchor, offset = state.weights, state.momentum, state.chunk_weights, state.offset
    ys, losses = [], []
    for t in range(q.shape[1]):
        real = None if mask is None else mask[:, t]
        if reset is not None:  # a document starts here
            fresh = reset[:, t] if real is None else reset[:, t] & real
            weights = tuple(where_rows(fresh, a, b) for a, b in zip(initial.weights, weights, strict=True))
            momentum = tuple(where_rows(fresh, a, b) for a, b in zip(initial.momentum, momentum, strict=True))
            offset = offset.masked_fill(fresh, 0)
        # the gradient's anchor moves where a chunk starts
        if chunk_size == 1:
            anchor = weights
        else:
            starts = offset == 0 if real is None else (offset == 0) & real
            anchor = tuple(where_rows(starts, w, c) for w, c in zip(weights, anchor, strict=True))
        grads, loss = gradient(k[:, t], v[:, t], anchor, network, params)
        new_weights, new_momentum = [], []
        for layer in range(network.depth):
            theta, eta, alpha = (gate[:, t, :, :, None] for gate in gates[layer])
            s = eta * momentum[layer] - theta * grads[layer]  # Eq. 14
            w = (1 - alpha) * weights[layer] + s  # Eq. 13
            w = w + alpha * base[layer] if base else w  # OURS: forgetting to M_0
            new_momentum.append(s if real is None else where_rows(real, s, momentum[layer]))
            new_weights.append(w if real is None else where_rows(real, w, weights[layer]))
        weights, momentum = tuple(new_weights), tuple(new_momentum)
        y = apply_network(q[:, t].unsqueeze(2), weights, network, params).squeeze(2)  # OURS: after its own write
        ys.append(y if real is None else y.masked_fill(~real[:, None, None], 0))
        losses.append(loss if real is None else loss.masked_fill(~real[:, None], 0))
        offset = (offset + (1 if real is None else real.to(offset.dtype))) % chunk_size
    anchor = tuple(where_rows(offset == 0, w, c) for w, c in zip(weights, anchor, strict=True))
    return torch.stack(ys, 1), MemoryState(weights, momentum, anchor, offset), torch.stack(losses, 1)


def reference(*call: Any) -> tuple[Tensor, MemoryState, Tensor]:
    """`token_loop` with the gradient by autograd, and with the arguments after the first."""
    return token_loop(inner_gradient, *call)
