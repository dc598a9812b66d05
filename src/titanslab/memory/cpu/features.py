"""The layer's passes before and after the memory as compiled CPU kernels.

Before it: short convolution, SiLU and unit norm. After it: RMS norm per head times a gate. `conv.py` and `norms.py`
compute the same in PyTorch operations; `backends.takes_features` says when these kernels run.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from titanslab.memory.cpu.build import load

MAX_PARTS = 3
_PARTS = ctypes.c_void_p * MAX_PARTS
_SIZES = ("batch", "tokens", "heads", "head_dim")


class FeatureArguments(ctypes.Structure):
    """Mirrors `struct FeatureArguments` in features.cpp, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (*_SIZES, "taps", "parts", "unit", "threads", "stride")),
        *((name, _PARTS) for name in ("x", "weight", "tail", "y", "dy", "dx", "d_weight", "d_tail")),
    )


class GateArguments(ctypes.Structure):
    """Mirrors `struct GateArguments` in features.cpp, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (*_SIZES, "threads", "stride")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("y", "weight", "gate", "out", "d_out", "dy", "d_weight", "d_gate")),
    )


def _features(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> FeatureArguments:
    batch, tokens, width = x[0].shape
    return FeatureArguments(
        batch=batch,
        tokens=tokens,
        heads=heads,
        head_dim=width // heads,
        taps=weight[0].shape[0],
        parts=len(x),
        unit=unit,
        threads=torch.get_num_threads(),
        stride=x[0].stride(1),
        x=_pointers(x),
        weight=_pointers(weight),
        tail=_pointers(tail),
    )


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


def _gate(y: Tensor, weight: Tensor, gate: Tensor | None, eps: float) -> GateArguments:
    batch, tokens, heads, head_dim = y.shape
    arguments = GateArguments(
        batch=batch,
        tokens=tokens,
        heads=heads,
        head_dim=head_dim,
        threads=torch.get_num_threads(),
        eps=eps,
        y=y.data_ptr(),
        weight=weight.data_ptr(),
    )
    if gate is not None:
        arguments.stride, arguments.gate = gate.stride(1), gate.data_ptr()
    return arguments


def gated_norm(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """`norm_and_gate` without its backward pass."""
    y, weight, gate = y.contiguous(), weight.contiguous(), _rows(gate)
    arguments, out = _gate(y, weight, gate, eps), torch.empty_like(gate, memory_format=torch.contiguous_format)
    arguments.out = out.data_ptr()
    load(y.dtype, "features").handle.titans_gated_norm(ctypes.byref(arguments), 0)  # type: ignore[union-attr]
    return out


def gated_norm_backward(
    d_out: Tensor, y: Tensor, weight: Tensor, gate: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, weight and gate."""
    d_out, y, weight, gate = d_out.contiguous(), y.contiguous(), weight.contiguous(), _rows(gate)
    arguments, dy = _gate(y, weight, gate, eps), torch.empty_like(y)
    d_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
    d_weight = weight.new_zeros(y.shape[0], *weight.shape)
    arguments.d_out, arguments.dy = d_out.data_ptr(), dy.data_ptr()
    arguments.d_weight, arguments.d_gate = d_weight.data_ptr(), d_gate.data_ptr()
    load(y.dtype, "features").handle.titans_gated_norm(ctypes.byref(arguments), 1)  # type: ignore[union-attr]
    return dy, d_weight.sum(0), d_gate


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of `x [..., D]` over its last dimension, times `weight`, whose dimensions are the last of x."""
    rows, weight = _norm_rows(x, weight)
    arguments, out = _gate(rows, weight, None, eps), torch.empty_like(rows)
    arguments.out = out.data_ptr()
    load(x.dtype, "features").handle.titans_gated_norm(ctypes.byref(arguments), 0)  # type: ignore[union-attr]
    return out.view(x.shape)


def rms_norm_backward(d_out: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    (rows, wide), (d_rows, _) = _norm_rows(x, weight), _norm_rows(d_out, weight)
    arguments, dx = _gate(rows, wide, None, eps), torch.empty_like(rows)
    d_weight = wide.new_zeros(rows.shape[0], *wide.shape)
    arguments.d_out, arguments.dy, arguments.d_weight = d_rows.data_ptr(), dx.data_ptr(), d_weight.data_ptr()
    load(x.dtype, "features").handle.titans_gated_norm(ctypes.byref(arguments), 1)  # type: ignore[union-attr]
    return dx.view(x.shape), d_weight.sum(0).view(weight.shape)


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
    @torch.autograd.function.once_differentiable
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
    @torch.autograd.function.once_differentiable
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
