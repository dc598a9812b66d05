"""Closed form of the inner gradient: in each layer the outer product `a_{l-1} (x) d_l` (docs/exact_form.md).

`a` is the layer's input for the key, `d` the gradient of the inner loss at the layer's product z_l. All functions
take tokens as rows, `[..., T, D]`, and any leading dimensions that broadcast.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


def output_error(
    k: Tensor, v: Tensor, z: Tensor, scale: Tensor | None, shift: Tensor | None, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`f(k) - v` from the last product `z [..., T, D]`, then the results of `normalize(z)`.

    Without `scale` and `shift` there is no norm, and the last two results have no meaning.
    """
    if scale is None or shift is None:
        error = unit = rstd = z - v
    else:
        unit, rstd = normalize(z)
        error = unit * scale + shift - v
    return (error + k if residual else error), unit, rstd


def outer_slopes(
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    norm: tuple[Tensor | None, Tensor | None],
    residual: bool,
    grad_clip: float | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """The inner gradient at `weights` in factors.

    Args:
        k, v: `[..., T, D]`. weights: one `[..., d_in, d_out]` per layer.
        norm: scale and shift of the LayerNorm, broadcastable to k, or None and None.
        residual, grad_clip: as in `MemoryNetwork`.

    Returns:
        Per layer the inputs a_0.. (a_0 is k), the gradients d_1.. and the products z_1..; then the loss `[..., T]`.
    """
    inputs, products = [k], [k @ weights[0]]
    for weight in weights[1:]:
        inputs.append(F.gelu(products[-1]))
        products.append(inputs[-1] @ weight)
    error, unit, rstd = output_error(k, v, products[-1], *norm, residual)
    d = 2 * error
    if norm[0] is not None:
        d = normalize_backward(d * norm[0], unit, rstd)
    slopes = [clip_rows(d, grad_clip)]
    for layer in range(len(weights) - 2, -1, -1):
        slopes.insert(0, (slopes[0] @ weights[layer + 1].transpose(-1, -2)) * gelu_slope(products[layer]))
    return inputs, slopes, products, error.square().sum(-1)
