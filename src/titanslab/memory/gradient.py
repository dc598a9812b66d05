"""Closed form of the inner gradient: in each layer the outer product `a_{l-1} (x) d_l` (docs/exact_form.md).

`a` is the layer's input for the key, `d` the gradient of the inner loss at the layer's product z_l. All functions
take tokens as rows, `[..., T, D]`, and any leading dimensions that broadcast.
"""

import math

import torch
from torch import Tensor

from titanslab.memory.network import NORM_EPS

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_TAU = 1 / math.sqrt(2 * math.pi)


def gelu_slope(z: Tensor) -> Tensor:
    """First derivative of the exact GELU."""
    return 0.5 * (1 + torch.erf(z * _SQRT_HALF)) + z * torch.exp(-0.5 * z * z) * _INV_SQRT_TAU


def gelu_curve(z: Tensor) -> Tensor:
    """Second derivative of the exact GELU."""
    return (2 - z * z) * torch.exp(-0.5 * z * z) * _INV_SQRT_TAU


def normalize(z: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm without its affine part, and 1/std."""
    centred = z - z.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
    return centred * rstd, rstd


def normalize_backward(grad: Tensor, unit: Tensor, rstd: Tensor) -> Tensor:
    """Gradient through `normalize`, given its outputs. Linear and self-adjoint in `grad`."""
    return rstd * (grad - grad.mean(-1, keepdim=True) - unit * (grad * unit).mean(-1, keepdim=True))


def normalize_double_backward(outer: Tensor, grad: Tensor, unit: Tensor, rstd: Tensor) -> Tensor:
    """Gradient in z of `sum(outer * normalize_backward(grad, ...))`."""
    width = unit.shape[-1]
    along = (outer * unit).sum(-1, keepdim=True)
    value = (outer * (grad - grad.mean(-1, keepdim=True))).sum(-1, keepdim=True)
    second = (grad * unit).mean(-1, keepdim=True)
    value = value - second * along  # sum(outer * d) / rstd
    through_unit = -rstd * (outer * second + grad * (along / width))
    return normalize_backward(through_unit, unit, rstd) - rstd * rstd * unit * (value / width)


def clip_rows(d: Tensor, limit: float | None) -> Tensor:
    """Rows of `d` scaled to an l2 norm of at most `limit`."""
    if limit is None:
        return d
    square, least = d.square().sum(-1, keepdim=True), limit * limit
    return d * torch.where(square > least, limit * torch.rsqrt(square.clamp_min(least)), 1)  # finite gradients at 0


def output_gradient(
    k: Tensor,
    v: Tensor,
    z: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: bool,
    norm: bool,
    grad_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the inner loss at the last product `z`, and the loss of each row.

    Args:
        k, v, z: `[..., T, D]`; norm_weight, norm_bias: broadcastable to them, or None.
    """
    if norm:
        unit, rstd = normalize(z)
        error = unit if norm_weight is None else unit * norm_weight
        error = (error if norm_bias is None else error + norm_bias) - v
    else:
        error = z - v
    if residual:
        error = error + k
    loss = error.square().sum(-1)
    d = 2 * error
    if norm:
        d = normalize_backward(d if norm_weight is None else d * norm_weight, unit, rstd)
    return clip_rows(d, grad_clip), loss
