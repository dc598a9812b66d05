"""How the chunk-loop ops, PyTorch's and the fused one, are tied to their backward ops: their arguments begin alike."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STATIC = 3  # chunk_size, residual, grad_clip: what backward takes of the arguments that are no tensors


def kept_states(kept: Sequence[Tensor], state: Sequence[Tensor]) -> Sequence[Tensor]:
    """What forward kept, with the start `state` where an empty tensor says that no other was kept."""
    states = [k if k.dim() > 1 else s.unsqueeze(0) for k, s in zip(kept, state, strict=False)]
    return [*states, *kept[len(states) :]]


def _save(ctx, inputs, output):
    q, k, v, gates, state, anchor, initial, norm, offset, mask, reset, *static = inputs
    ctx.counts, ctx.static = (len(anchor), len(initial), len(norm)), static[:STATIC]
    ctx.others = 3 + len(static)  # arguments from offset on, which have no gradient
    ctx.set_materialize_grads(False)
    # only rows that reset look at it again
    ctx.shapes = [(i.shape, i.dtype) for i in initial] if reset is None else None
    held = [] if reset is None else initial
    ctx.save_for_backward(q, k, v, gates, offset, mask, reset, *anchor, *held, *norm, *kept_states(output[5], state))


def gradients(
    backward: Callable[..., list[Tensor]],
    given: tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]],
    saved: tuple,
    static: tuple | list,
) -> list[Tensor]:
    """What `backward` says of q, k, v, gates, and each state, anchor, initial and norm tensor.

    Args:
        given: gradients of y, end states and end anchors, None where there is none.
        saved: q, k, v, gates, anchor, initial, norm, offset, mask, reset, kept.
    """
    (dy, d_end, d_running), (q, initial) = given, (saved[0], saved[5])
    dy = torch.zeros_like(q) if dy is None else dy
    d_end = [torch.zeros_like(i) if d is None else d for d, i in zip(d_end, initial, strict=True)]
    d_running = [
        i.new_zeros(i.shape[0], i.shape[1] // 2, i.shape[2]) if d is None else d
        for d, i in zip(d_running, initial, strict=False)
    ]
    return backward(dy, d_end, d_running, *saved, *static)


def register_backward(op: torch.library.CustomOpDef, backward: Callable[..., list[Tensor]]) -> None:
    """Let autograd call `backward` for `op`: the arguments of `chunked_memory` and `chunked_memory_backward`."""

    def differentiate(ctx, dy, d_loss, d_offset, d_end, d_running, d_kept):
        q, k, v, gates, offset, mask, reset, *rest = ctx.saved_tensors
        anchors, depth, norms = ctx.counts
        anchor, rest = rest[:anchors], rest[anchors:]
        if ctx.shapes is None:
            initial, rest = rest[:depth], rest[depth:]
        else:
            initial = [q.new_empty(shape, dtype=dtype) for shape, dtype in ctx.shapes]
        norm, kept = rest[:norms], rest[norms:]
        saved = (q, k, v, gates, anchor, initial, norm, offset, mask, reset, kept)
        grads = gradients(backward, (dy, d_end, d_running), saved, ctx.static)
        dq, dk, dv, d_gates, *grads = grads
        d_state, grads = grads[:depth], grads[depth:]
        d_anchor, grads = grads[:anchors], grads[anchors:]
        d_initial, d_norm = grads[:depth], grads[depth:]
        return dq, dk, dv, d_gates, d_state, d_anchor, d_initial, d_norm, *[None] * ctx.others

    op.register_autograd(differentiate, setup_context=_save)
