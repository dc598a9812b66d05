"""The arguments that the chunk-loop ops share, how each op is tied to its backward op, and what autograd may ask."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.rows import Schedule


def first_order(backward: Callable[..., Any]) -> Any:
    """Mark a backward pass that cannot be differentiated: it raises where autograd records it (`create_graph=True`).

    PyTorch's `once_differentiable` gives gradients without a graph in some of these cases, and says nothing.
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the fast paths of NeuralMemory and neural_memory have no second derivative, which create_graph=True "
                "asks for; use backend='recurrent' or backend='reference', which have one"
            )
        return backward(ctx, *grads)

    return checked


class Inputs(NamedTuple):
    """What a chunk loop reads in forward and in backward, beside the state.

    q, k, v: `[B,T,H,D]`. gates: theta, eta, alpha `[3, 1 or L, B, T, H]`. anchor: per layer `[B*H, d_in, d_out]`, or
    empty where every row starts at a chunk boundary. initial: per layer `[B*H, 2 d_in, d_out]`, weights above momentum.
    norm: weight and bias `[H, D]`, or empty. base: per layer `[H, d_in, d_out]`, the weights to which the memory
    forgets and from which those in `initial` and in the states count, or empty for 0; anchors are whole.
    schedule: the slots of a ragged call. group: blocks between kept states.
    lanes: whether the loop computes one memory per vector lane (`lane_group`); the last chunk may then be open.
    raw, convs: where the lanes make q, k and v, the projections `[B,T,...]` and the convolutions' weights.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    anchor: list[Tensor]
    initial: list[Tensor]
    norm: list[Tensor]
    schedule: Schedule | None
    chunk_size: int
    group: int
    residual: bool
    grad_clip: float | None
    lanes: bool = False
    raw: Tensor | None = None
    convs: Sequence[Tensor] = ()
    base: Sequence[Tensor] = ()


def kept_states(kept: Sequence[Tensor], state: Sequence[Tensor]) -> Sequence[Tensor]:
    """The states that forward kept; an empty tensor stands for the start `state`, which is not copied."""
    states = [k if k.dim() > 1 else s.unsqueeze(0) for k, s in zip(kept, state, strict=False)]
    return [*states, *kept[len(states) :]]


def or_zeros(
    dy: Tensor | None,
    d_end: Sequence[Tensor | None],
    d_running: Sequence[Tensor | None],
    q: Tensor,
    initial: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of y, end states and end anchors, with zeros where there is none; shapes are those of `Inputs`."""
    dy = torch.zeros_like(q) if dy is None else dy
    ends = [torch.zeros_like(i) if d is None else d for d, i in zip(d_end, initial, strict=True)]
    anchors = [
        i.new_zeros(i.shape[0], i.shape[1] // 2, i.shape[2]) if d is None else d
        for d, i in zip(d_running, initial, strict=False)
    ]
    return dy, ends, anchors


def register_backward(op: torch.library.CustomOpDef, backward: Callable[..., list[Tensor]], static: int) -> None:
    """Let autograd call `backward` for `op`.

    Args:
        op: takes q, k, v, gates, state, anchor, initial, slow, offset, mask, reset, then arguments that are no tensors.
        backward: takes the first `static` of the latter.
    """

    def save(ctx, inputs, output):
        q, k, v, gates, state, anchor, initial, slow, offset, mask, reset, *rest = inputs
        ctx.counts, ctx.static = (len(anchor), len(initial), len(slow)), rest[:static]
        ctx.others = 3 + len(rest)  # arguments from offset on, which have no gradient
        ctx.set_materialize_grads(False)
        # backward reads `initial` only if some row resets
        ctx.shapes = [(i.shape, i.dtype) for i in initial] if reset is None else None
        held = [] if reset is None else initial
        ctx.save_for_backward(
            q, k, v, gates, offset, mask, reset, *anchor, *held, *slow, *kept_states(output[5], state)
        )

    @first_order
    def differentiate(ctx, dy, d_loss, d_offset, d_end, d_running, d_kept):
        q, k, v, gates, offset, mask, reset, *rest = ctx.saved_tensors
        anchors, depth, count = ctx.counts
        anchor, rest = rest[:anchors], rest[anchors:]
        if ctx.shapes is None:
            initial, rest = rest[:depth], rest[depth:]
        else:
            initial = [q.new_empty(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        slow, kept = rest[:count], rest[count:]
        saved = (q, k, v, gates, anchor, initial, slow, offset, mask, reset, kept)
        dq, dk, dv, d_gates, *grads = backward(*or_zeros(dy, d_end, d_running, q, initial), *saved, *ctx.static)
        d_state, grads = grads[:depth], grads[depth:]
        d_anchor, grads = grads[:anchors], grads[anchors:]
        d_initial, d_slow = grads[:depth], grads[depth:]
        return dq, dk, dv, d_gates, d_state, d_anchor, d_initial, d_slow, *[None] * ctx.others

    op.register_autograd(differentiate, setup_context=save)
