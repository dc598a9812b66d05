"""RMS and l2 normalisation with short backward passes; PyTorch's own are many small operations on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.memory.cpu import features
from titanslab.memory.cpu.build import load
from titanslab.memory.transforms import transformed


def own_backward(x: Tensor) -> bool:
    """Whether norms and SwiGLU use the backward passes of this project: on a CPU, float32 or float64, with autograd on.

    Without autograd the wrapping would only slow a decode step. torch.compile fuses PyTorch's own operations, and torch
    2.11 loses the gradients of SwiGLU's function in it.
    """
    if torch.compiler.is_compiling() or transformed():
        return False
    return torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        plain = type(x) is Tensor and weight.dtype == x.dtype  # a fake tensor has no data to point at
        ctx.eps, ctx.compiled = eps, plain and load(x.dtype, "features").handle is not None
        if ctx.compiled:
            return features.rms_norm(x, weight, eps)
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        if ctx.compiled and not torch.is_grad_enabled():
            return *features.rms_norm_backward(dy, x, weight, ctx.eps), None
        # differentiable operations: there may be a second derivative
        rstd = torch.rsqrt((x * x).mean(-1, keepdim=True) + ctx.eps)
        unit, g = x * rstd, dy * weight
        d_weight = (dy * unit).sum_to_size(weight.shape)
        return rstd * torch.addcmul(g, unit, (g * unit).mean(-1, keepdim=True), value=-1), d_weight, None


class _UnitNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(1e-24))
        ctx.save_for_backward(x, inverse)
        return x * inverse

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        x, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative
            inverse = torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(1e-24))
        y = x * inverse
        return inverse * torch.addcmul(dy, y, (dy * y).sum(-1, keepdim=True), value=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dimension; `weight` has the trailing dimensions of `x`."""
    if not own_backward(x):
        return F.rms_norm(x, x.shape[-1:], eps=eps) * weight
    return _RMSNorm.apply(x, weight, eps)


def unit_norm(x: Tensor) -> Tensor:
    """`x` scaled to l2 norm 1 over the last dimension."""
    if not own_backward(x):
        return F.normalize(x, dim=-1)
    return _UnitNorm.apply(x)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension, in float32 at least, returned in the dtype of `x`."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64):
            return rms_norm(x, self.weight, self.eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        return rms_norm(x.to(wide), self.weight.to(wide), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
