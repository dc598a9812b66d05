"""The layer's passes before and after the memory as compiled CPU kernels.

Before it: short convolution, SiLU and unit norm. After it: RMS norm per head times a gate. `conv.py` and `norms.py`
compute the same in PyTorch operations; `backends.takes_features` says when these kernels run.
"""

import ctypes

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
    """`conv_features` as a plain function, without the overhead of a custom op."""
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


def _gate(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> GateArguments:
    batch, tokens, heads, head_dim = y.shape
    return GateArguments(
        batch=batch,
        tokens=tokens,
        heads=heads,
        head_dim=head_dim,
        threads=torch.get_num_threads(),
        stride=gate.stride(1),
        eps=eps,
        y=y.data_ptr(),
        weight=weight.data_ptr(),
        gate=gate.data_ptr(),
    )


def gated_norm(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """`gated_norm_op` as a plain function, without the overhead of a custom op."""
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


@torch.library.custom_op("titanslab::conv_features", mutates_args=())
def conv_features(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> list[Tensor]:
    """Short convolution, SiLU, and unit norm per head, of up to three inputs at once.

    Args:
        x: each `[B,T,H*D]`. weight: each `[taps, H*D]`, row j for the token j steps back.
        tail: each `[B, taps-1, H*D]`, the inputs before the call; an empty list stands for zeros.
        unit: number of inputs, from the first, that get unit norm per head.
    """
    return features(x, weight, tail, heads, unit)


@conv_features.register_fake
def _(x, weight, tail, heads, unit):
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in x]


@torch.library.custom_op("titanslab::conv_features_backward", mutates_args=())
def conv_features_backward(
    dy: list[Tensor], x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int
) -> list[Tensor]:
    """Gradients of each x, weight and tail."""
    return features_backward(dy, x, weight, tail, heads, unit)


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
def gated_norm_op(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """RMS norm of `y [B,T,H,D]` per head, times `weight [H,D]` and `gate [B,T,H*D]`."""
    return gated_norm(y, weight, gate, eps)


@gated_norm_op.register_fake
def _(y, weight, gate, eps):
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@torch.library.custom_op("titanslab::gated_norm_backward", mutates_args=())
def gated_norm_backward_op(
    d_out: Tensor, y: Tensor, weight: Tensor, gate: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, weight and gate."""
    return gated_norm_backward(d_out, y, weight, gate, eps)


@gated_norm_backward_op.register_fake
def _(d_out, y, weight, gate, eps):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (y, weight, gate))


def _save_gated_norm(ctx, inputs, output):
    y, weight, gate, ctx.eps = inputs
    ctx.save_for_backward(y, weight, gate)


def _differentiate_gated_norm(ctx, d_out):
    return *gated_norm_backward_op(d_out, *ctx.saved_tensors, ctx.eps), None


gated_norm_op.register_autograd(_differentiate_gated_norm, setup_context=_save_gated_norm)


def _untraced(x: Tensor) -> bool:
    """Whether a call needs neither gradient nor trace; then it skips the custom op, whose overhead slows decoding."""
    return type(x) is Tensor and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def convolve(x: list[Tensor], weight: list[Tensor], tail: list[Tensor], heads: int, unit: int) -> list[Tensor]:
    """`conv_features`; a call that is not traced skips the custom op."""
    return (features if _untraced(x[0]) else conv_features)(x, weight, tail, heads, unit)


def norm_and_gate(y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """`gated_norm_op`; a call that is not traced skips the custom op."""
    return (gated_norm if _untraced(y) else gated_norm_op)(y, weight, gate, eps)
