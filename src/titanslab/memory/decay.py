"""Decay coefficients inside a chunk: how much of write i is left at token t (paper §3.2, exact for momentum).

Products are formed by repeated multiplication, never by dividing cumulative products, so they and their gradients
are right at gates of exactly 0 and 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Decay(NamedTuple):
    """Coefficients of one group of chunks, leading dimensions `[...]` as the gates'.

    `M_t = start[t] M + lag[t] S - sum_i mix[t,i] u_i` and, after the chunk,
    `S' = momentum_end S - sum_i momentum_mix[i] u_i`.
    """

    start: Tensor  # [..., C]
    lag: Tensor  # [..., C]
    mix: Tensor  # [..., C, C], theta included
    momentum_end: Tensor  # [...]
    momentum_mix: Tensor  # [..., C], theta included


class Products(NamedTuple):
    """Running products of the gates, kept for the backward."""

    kept: Tensor  # A: [..., C, C+1], column 0 = state before the chunk
    carried: Tensor  # E, likewise
    weighted: Tensor  # A masked by real tokens, without column 0
    combined: Tensor  # G = A E


def _running_products(factor: Tensor) -> Tensor:
    """`out[t, 1+i] = prod factor[i+1..t]`, `out[t, 0] = prod factor[0..t]`, 0 where i > t."""
    size = factor.shape[-1]
    row = torch.arange(size, device=factor.device)[:, None]
    column = torch.arange(size + 1, device=factor.device)[None, :]
    factors = torch.where(row >= column, factor[..., :, None], 1)
    products = factors.cumprod(-2).masked_fill(column > row + 1, 0)
    # values this small only slow the matrix products down (denormals); they are 0 to every user of them
    return products.masked_fill(products.abs() < 1e-30, 0) if factor.dtype == torch.float32 else products


def decay(theta: Tensor, eta: Tensor, alpha: Tensor, real: Tensor | None) -> tuple[Decay, Products]:
    """Coefficients from gates `[..., C]`; `real` (bool, broadcastable) marks slots that hold a token."""
    keep = 1 - alpha
    if real is not None:
        keep, eta, theta = torch.where(real, keep, 1), torch.where(real, eta, 1), theta * real.to(theta.dtype)
    kept, carried = _running_products(keep), _running_products(eta)
    weighted = kept[..., 1:]
    if real is not None:
        weighted = weighted * real[..., None, :].to(kept.dtype)
    combined = weighted @ carried
    mix, momentum_mix = combined[..., 1:] * theta[..., None, :], carried[..., -1, 1:] * theta
    values = Decay(kept[..., 0], combined[..., 0], mix, carried[..., -1, 0], momentum_mix)
    return values, Products(kept, carried, weighted, combined)


def decay_backward(
    grad: Decay, theta: Tensor, products: Products, real: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in theta, eta and alpha of `decay`, by the adjoint of the recurrences (no division)."""
    if real is not None:
        theta = theta * real.to(theta.dtype)
    kept, carried, weighted, combined = products
    d_theta = (grad.mix * combined[..., 1:]).sum(-2) + grad.momentum_mix * carried[..., -1, 1:]
    d_combined = torch.cat([grad.lag[..., None], grad.mix * theta[..., None, :]], -1)
    d_carried = weighted.transpose(-1, -2) @ d_combined
    d_carried[..., -1, 0] += grad.momentum_end
    d_carried[..., -1, 1:] += grad.momentum_mix * theta
    d_kept = d_combined @ carried.transpose(-1, -2)
    if real is not None:
        d_kept = d_kept * real[..., None, :].to(theta.dtype)
    d_kept = torch.cat([grad.start[..., None], d_kept], -1)
    d_eta, d_keep = _factor_gradient(d_carried, carried), _factor_gradient(d_kept, kept)
    if real is not None:
        live = real.to(theta.dtype)
        d_theta, d_eta, d_keep = d_theta * live, d_eta * live, d_keep * live
    return d_theta, d_eta, -d_keep


def _factor_gradient(grad: Tensor, products: Tensor) -> Tensor:
    """Gradient in `factor` of `_running_products(factor)`: the adjoint recurrence, as one matrix product."""
    grad = grad.tril(1)
    before = torch.nn.functional.pad(products[..., :-1, :], (0, 0, 1, 0))
    before[..., 0, 0] = 1
    reach = products[..., 1:]
    return ((reach.transpose(-1, -2) @ grad) * before).sum(-1)
