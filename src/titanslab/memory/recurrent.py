"""One token at a time with the gradient in closed form: the decode step, and a readable second path.

Plain differentiable torch operations, so it is also the path for channel-wise forgetting.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from titanslab.memory.gradient import gelu_slope, output_gradient
from titanslab.memory.network import MemoryNetwork, MemoryParams, apply_network
from titanslab.memory.reference import Tokens
from titanslab.memory.state import MemoryState, where_rows


def rank_one_gradient(
    k: Tensor, v: Tensor, weights: tuple[Tensor, ...], network: MemoryNetwork, params: MemoryParams
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Factors `a_{l-1}`, `d_l` of the inner gradient of every layer, and the loss.

    Args:
        k, v: `[B,H,T,D]`; weights: tuple of `[B,H,d_in,d_out]`.
    """
    inputs, products = [k], []
    for layer, weight in enumerate(weights):
        products.append(inputs[-1] @ weight)
        if layer < network.depth - 1:
            inputs.append(F.gelu(products[-1]))
    scale = None if params.norm_weight is None else params.norm_weight[:, None, :]
    shift = None if params.norm_bias is None else params.norm_bias[:, None, :]
    d, loss = output_gradient(k, v, products[-1], scale, shift, network.residual, network.norm, network.grad_clip)
    slopes = [d]
    for layer in range(network.depth - 2, -1, -1):
        slopes.insert(0, (slopes[0] @ weights[layer + 1].transpose(-1, -2)) * gelu_slope(products[layer]))
    return inputs, slopes, loss


def recurrent(
    tokens: Tokens,
    network: MemoryNetwork,
    params: MemoryParams,
    state: MemoryState,
    initial: MemoryState,
    chunk_size: int,
) -> tuple[Tensor, MemoryState, Tensor]:
    """Arguments and results of `reference`."""
    q, k, v, gates, mask, reset = tokens
    weights, momentum, anchor, offset = state.weights, state.momentum, state.chunk_weights, state.offset
    ys, losses = [], []
    for t in range(q.shape[1]):
        real = None if mask is None else mask[:, t]
        if reset is not None:
            fresh = reset[:, t] if real is None else reset[:, t] & real
            weights = tuple(where_rows(fresh, a, b) for a, b in zip(initial.weights, weights, strict=True))
            momentum = tuple(where_rows(fresh, a, b) for a, b in zip(initial.momentum, momentum, strict=True))
            offset = offset.masked_fill(fresh, 0)
        if chunk_size == 1:
            anchor = weights
        else:
            starts = offset == 0 if real is None else (offset == 0) & real
            anchor = tuple(where_rows(starts, w, c) for w, c in zip(weights, anchor, strict=True))
        inputs, slopes, loss = rank_one_gradient(k[:, t].unsqueeze(2), v[:, t].unsqueeze(2), anchor, network, params)
        loss = loss.squeeze(2)
        new_weights, new_momentum = [], []
        for layer in range(network.depth):
            theta, eta, alpha = (gate[:, t, :, :, None] for gate in gates[layer])
            u = inputs[layer].transpose(-1, -2) * slopes[layer]
            s = eta * momentum[layer] - theta * u  # Eq. 14
            w = (1 - alpha) * weights[layer] + s  # Eq. 13
            new_momentum.append(s if real is None else where_rows(real, s, momentum[layer]))
            new_weights.append(w if real is None else where_rows(real, w, weights[layer]))
        weights, momentum = tuple(new_weights), tuple(new_momentum)
        y = apply_network(q[:, t].unsqueeze(2), weights, network, params).squeeze(2)
        ys.append(y if real is None else y.masked_fill(~real[:, None, None], 0))
        losses.append(loss if real is None else loss.masked_fill(~real[:, None], 0))
        step = 1 if real is None else real.to(offset.dtype)
        offset = (offset + step) % chunk_size
    anchor = tuple(where_rows(offset == 0, w, c) for w, c in zip(weights, anchor, strict=True))
    return torch.stack(ys, 1), MemoryState(weights, momentum, anchor, offset), torch.stack(losses, 1)
