"""The layer's passes before and after the memory as compiled CPU kernels.

Before it: short convolution, SiLU and unit norm. After it: RMS norm per head times a gate. `conv.py` and `norms.py`
compute the same in PyTorch operations; `backends.takes_features` says when these kernels run.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from titanslab.memory.autograd import first_order
from titanslab.memory.cpu.build import MAX_PARTS, fields, load

_PARTS = ctypes.c_void_p * MAX_PARTS


class FeatureArguments(ctypes.Structure):
    """`struct FeatureArguments` of features.cpp."""

    _fields_ = fields("features.cpp", "FeatureArguments")


class GateArguments(ctypes.Structure):
    """`struct GateArguments` of features.cpp."""

    _fields_ = fields("features.cpp", "GateArguments")


def _features(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> FeatureArguments:
    batch, tokens, width = x[0].shape
    sizes = (batch, tokens, heads, width // heads, weight[0].shape[0], len(x), unit)
    parts = (_pointers(x), _pointers(weight), _pointers(tail))
    return FeatureArguments(*sizes, torch.get_num_threads(), x[0].stride(1), *parts)


def _pointers(tensors: list[Tensor]) -> ctypes.Array:
    return _PARTS(*(t.data_ptr() for t in tensors))


def _contiguous(*lists: list[Tensor]) -> list[list[Tensor]]:
    return [[t.contiguous() for t in tensors] for tensors in lists]


def _rows(x: Tensor) -> Tensor:
    """`x [B,T,W]`, copied unless its tokens are one stride apart, as they are in columns of a wider tensor."""
    batch, tokens, _ = x.shape
    fits = x.stride(2) == 1 and (batch == 1 or x.stride(0) == tokens * x.stride(1))
    return x if fits else x.contiguous()


def _inputs(x: list[Tensor]) -> list[Tensor]:
    x = [_rows(part) for part in x]
    return x if len({part.stride(1) for part in x}) == 1 else [part.contiguous() for part in x]


def features(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> list[Tensor]:
    """`convolve` without its backward pass."""
    x, (weight, tail) = _inputs(x), _contiguous(weight, tail)
    arguments = _features(x, weight, tail, heads, unit)
    y = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in x]
    arguments.y = _pointers(y)
    load(x[0].dtype, "features").handle.titans_features(ctypes.byref(arguments), 0)  # type: ignore[union-attr]
    return y


def features_backward(
    dy: list[Tensor],
    x: list[Tensor],
    weight: list[Tensor],
    tail: list[Tensor],
    heads: int,
    unit: int,
    dx: list[Tensor] | None = None,
) -> list[Tensor]:
    """Gradients of each x, weight and tail. A given `dx`, with the strides of x, receives those of x."""
    x, (dy, weight, tail) = _inputs(x), _contiguous(dy, weight, tail)
    if dx is None:
        x = [part.contiguous() for part in x]
        dx = [torch.empty_like(part) for part in x]
    arguments = _features(x, weight, tail, heads, unit)
    d_weight = [w.new_zeros(x[0].shape[0], *w.shape) for w in weight]
    d_tail = [torch.zeros_like(t) for t in tail]
    arguments.dy, arguments.dx = _pointers(dy), _pointers(dx)
    arguments.d_weight, arguments.d_tail = _pointers(d_weight), _pointers(d_tail)
    load(x[0].dtype, "features").handle.titans_features(ctypes.byref(arguments), 1)  # type: ignore[union-attr]
    return [*dx, *(w.sum(0) for w in d_weight), *d_tail]


def _gate(y: Tensor, weight: Tensor, gate: Tensor | None, eps: float, backward: int, **others: Tensor | None) -> None:
    """Call the kernel; all tensors but the gate, which may be columns of a wider one, are contiguous."""
    stride = 0 if gate is None else gate.stride(1)
    tensors = {"y": y, "weight": weight, "gate": gate, **others}
    pointers = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    arguments = GateArguments(*y.shape, torch.get_num_threads(), stride, eps, **pointers)
    load(y.dtype, "features").handle.titans_gated_norm(ctypes.byref(arguments), backward)  # type: ignore[union-attr]


def gated_norm(y: Tensor, weight: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    """`norm_and_gate` without its backward pass; `gate` None stands for ones."""
    y, weight, gate = y.contiguous(), weight.contiguous(), None if gate is None else _rows(gate)
    out = y.new_empty(*y.shape[:2], weight.numel())
    _gate(y, weight, gate, eps, 0, out=out)
    return out


def gated_norm_backward(
    d_out: Tensor, y: Tensor, weight: Tensor, gate: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of y, weight and gate."""
    d_out, y, weight = d_out.contiguous(), y.contiguous(), weight.contiguous()
    gate = None if gate is None else _rows(gate)
    dy, d_weight = torch.empty_like(y), weight.new_zeros(y.shape[0], *weight.shape)
    d_gate = None if gate is None else torch.empty_like(gate, memory_format=torch.contiguous_format)
    _gate(y, weight, gate, eps, 1, d_out=d_out, dy=dy, d_weight=d_weight, d_gate=d_gate)
    return dy, d_weight.sum(0), d_gate


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of `x [..., D]` over its last dimension, times `weight`, whose dimensions are the last of x."""
    return gated_norm(*_norm_rows(x, weight), None, eps).view(x.shape)


def rms_norm_backward(d_out: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    rows, wide = _norm_rows(x, weight)
    dx, d_weight, _ = gated_norm_backward(_norm_rows(d_out, weight)[0], rows, wide, None, eps)
    return dx.view(x.shape), d_weight.view(weight.shape)


def _norm_rows(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x as `[batch, tokens, H, D]` and weight as `[H, D]`. The kernel divides batch times heads among the threads."""
    heads, width, threads = weight.numel() // x.shape[-1], x.shape[-1], torch.get_num_threads()
    rows = x.contiguous().view(-1, heads, width)
    batch = threads if heads == 1 and rows.shape[0] % threads == 0 else 1
    return rows.view(batch, -1, heads, width), weight.contiguous().view(heads, width)


class _Convolve(torch.autograd.Function):
    """`features` with a backward pass, which computes all activations again from the inputs."""

    @staticmethod
    def forward(ctx: Any, heads: int, unit: int, parts: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.heads, ctx.unit, ctx.parts = heads, unit, parts
        ctx.save_for_backward(*tensors)
        x, weight, tail = _thirds(tensors, parts)
        return tuple(features(x, weight, tail, heads, unit))

    @staticmethod
    @first_order
    def backward(ctx: Any, *dy: Tensor) -> tuple[Any, ...]:
        x, weight, tail = _thirds(ctx.saved_tensors, ctx.parts)
        return None, None, None, *features_backward(list(dy), x, weight, tail, ctx.heads, ctx.unit)


def _thirds(tensors: tuple[Tensor, ...], parts: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return list(tensors[:parts]), list(tensors[parts : 2 * parts]), list(tensors[2 * parts :])


class _GateNorm(torch.autograd.Function):
    """`gated_norm` with a backward pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(y, weight, gate)
        ctx.eps = eps
        return gated_norm(y, weight, gate, eps)

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
        y, weight, gate = ctx.saved_tensors
        return *gated_norm_backward(d_out, y, weight, gate, ctx.eps), None


def convolve(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> list[Tensor]:
    """Short convolution, SiLU, and unit norm per head, of up to three inputs at once, with a backward pass.

    Args:
        x: each `[B,T,H*D]`. weight: each `[taps, H*D]`, row j for the token j steps back.
        tail: each `[B, taps-1, H*D]`, the inputs before the call; an empty list stands for zeros.
        unit: number of inputs, from the first, that get unit norm per head.
    """
    if not torch.is_grad_enabled():
        return features(x, weight, tail, heads, unit)
    return list(_Convolve.apply(heads, unit, len(x), *x, *weight, *tail))


def norm_and_gate(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """RMS norm of `y [B,T,H,D]` per head, times `weight [H,D]` and `gate [B,T,H*D]`, with a backward pass."""
    return _GateNorm.apply(y, weight, gate, eps) if torch.is_grad_enabled() else gated_norm(y, weight, gate, eps)
