"""The layer's passes before and after the memory as single CPU ops; `conv.py` and `norms.py` are what they compute."""

import torch
from torch import Tensor, nn


@torch.library.custom_op("titanslab::conv_features", mutates_args=())
def conv_features(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> list[Tensor]:
    """Short convolution, SiLU, and unit norm per head, of up to three inputs at once.

    Args:
        x: each `[B,T,H*D]`. weight: each `[taps, H*D]`, row j for the token j steps back.
        tail: each `[B, taps-1, H*D]`, the inputs before the call; none = zeros.
        unit: the first so many inputs get unit norm per head.
    """
    from titanslab.memory.cpu import features as native

    return native.features(x, weight, tail, heads, unit)


@conv_features.register_fake
def _(x, weight, tail, heads, unit):
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in x]


@torch.library.custom_op("titanslab::conv_features_backward", mutates_args=())
def conv_features_backward(
    dy: list[Tensor], x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int
) -> list[Tensor]:
    """Gradients of each x, weight and tail."""
    from titanslab.memory.cpu import features as native

    return native.features_backward(dy, x, weight, tail, heads, unit)


@conv_features_backward.register_fake
def _(dy, x, weight, tail, heads, unit):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (*x, *weight, *tail)]


def _save_features(ctx, inputs, output):
    x, weight, tail, ctx.heads, ctx.unit = inputs
    ctx.parts = len(x)
    ctx.save_for_backward(*x, *weight, *tail)


def _differentiate_features(ctx, dy):
    n, saved = ctx.parts, ctx.saved_tensors
    x, weight, tail = saved[:n], saved[n : 2 * n], saved[2 * n :]
    dy = [torch.zeros_like(part) if d is None else d for d, part in zip(dy, x, strict=True)]
    grads = conv_features_backward(dy, x, weight, tail, ctx.heads, ctx.unit)
    return grads[:n], grads[n : 2 * n], grads[2 * n :], None, None


conv_features.register_autograd(_differentiate_features, setup_context=_save_features)


@torch.library.custom_op("titanslab::gated_norm", mutates_args=())
def gated_norm(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """RMS norm of `y [B,T,H,D]` per head, times `weight [H,D]` and `gate [B,T,H*D]`."""
    from titanslab.memory.cpu import features as native

    return native.gated_norm(y, weight, gate, eps)


@gated_norm.register_fake
def _(y, weight, gate, eps):
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@torch.library.custom_op("titanslab::gated_norm_backward", mutates_args=())
def gated_norm_backward(
    d_out: Tensor, y: Tensor, weight: Tensor, gate: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, weight and gate."""
    from titanslab.memory.cpu import features as native

    return native.gated_norm_backward(d_out, y, weight, gate, eps)


@gated_norm_backward.register_fake
def _(d_out, y, weight, gate, eps):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (y, weight, gate))


def _save_gated_norm(ctx, inputs, output):
    y, weight, gate, ctx.eps = inputs
    ctx.save_for_backward(y, weight, gate)


def _differentiate_gated_norm(ctx, d_out):
    return *gated_norm_backward(d_out, *ctx.saved_tensors, ctx.eps), None


gated_norm.register_autograd(_differentiate_gated_norm, setup_context=_save_gated_norm)


def fits(*tensors: Tensor) -> bool:
    """Whether these ops can take the tensors: on a CPU, all float32 or float64, with the kernel compiled."""
    dtype = tensors[0].dtype
    if any(type(t) not in (Tensor, nn.Parameter) for t in tensors):
        return False  # a fake or a wrapped tensor has no data to point at
    if dtype not in (torch.float32, torch.float64) or any(t.device.type != "cpu" or t.dtype != dtype for t in tensors):
        return False
    if torch.compiler.is_compiling():
        return False  # torch.compile fuses PyTorch's own operations
    from titanslab.memory.cpu.build import load

    return load(dtype, "features").handle is not None


def _directly(x: Tensor) -> bool:
    """Whether no gradient or trace can be asked for: a decode step is many small calls, an op's wrapping counts."""
    return type(x) is Tensor and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def convolve(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> list[Tensor]:
    """`conv_features`, the short way where that is possible."""
    if not _directly(x[0]):
        return conv_features(x, weight, tail, heads, unit)
    from titanslab.memory.cpu import features as native

    return native.features(x, weight, tail, heads, unit)


def norm_and_gate(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """`gated_norm`, the short way where that is possible."""
    if not _directly(y):
        return gated_norm(y, weight, gate, eps)
    from titanslab.memory.cpu import features as native

    return native.gated_norm(y, weight, gate, eps)
