"""The decode step: one token of every row, one program per (row, head). Its time is that of moving the state's bytes.

The first loop over the hidden columns computes the gradient at the anchor; the second updates and reads the columns.
"""

# Triton drops a branch on a compile-time value only if that value is the whole condition, so such `if`s stay nested
# ruff: noqa: SIM102

import torch
import triton
import triton.language as tl
from torch import Tensor

from titanslab.memory.gpu.layout import contiguous
from titanslab.memory.gpu.plan import power_of_two
from titanslab.memory.gpu.tiles import gelu, gelu_slope, loss_error, loss_slope, normalize, put, tile, vector
from titanslab.memory.network import MemoryNetwork


@triton.jit
def _moved(m, s, a, d, theta, eta, alpha, base, real):
    """Eqs. 13 and 14 for one tile of a layer; padding (`real` false) leaves m and s unchanged.

    `base`: what forgetting draws m to.
    """
    new_s = tl.where(real, eta * s - theta * a[:, None] * d[None, :], s)
    return tl.where(real, (1 - alpha) * m + alpha * base + new_s, m), new_s


@triton.jit
def memory_step(
    q_ptr, k_ptr, v_ptr,  # [rows, D]
    gates_ptr,  # [3, G, rows]: theta, eta, alpha
    up_ptr, down_ptr, up_momentum, down_momentum, up_anchor, down_anchor,  # [rows, D, E] and [rows, E, D]
    up_initial, down_initial, up_initial_momentum, down_initial_momentum,  # the same
    scale_ptr, shift_ptr,  # [H, D]
    up_base, down_base,  # M_0, read with BASE alone: [H, D, E], [H, E, D]
    offset_ptr, real_ptr, reset_ptr,  # [B]
    up_out, down_out, up_momentum_out, down_momentum_out, up_anchor_out, down_anchor_out,  # out
    y_ptr, loss_ptr,  # out: [rows, D], [rows]
    rows, gate_layers, clip,
    H: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TD: tl.constexpr, BE: tl.constexpr,
    DEPTH: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr, MASK: tl.constexpr,
    RESET: tl.constexpr, BASE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    acc = down_ptr.dtype.element_ty
    state = row * D * E
    offset = tl.load(offset_ptr + row // H)
    real = offset >= 0
    if MASK:
        real = tl.load(real_ptr + row // H) != 0
    up, down, up_s, down_s = up_ptr + state, down_ptr + state, up_momentum + state, down_momentum + state
    if RESET:
        if real & (tl.load(reset_ptr + row // H) != 0):
            offset = offset * 0
            up, down = up_initial + state, down_initial + state
            up_s, down_s = up_initial_momentum + state, down_initial_momentum + state
    up_w, down_w = up_anchor + state, down_anchor + state
    if offset == 0:  # a chunk starts here
        up_w, down_w = up, down
    end = tl.where(real, (offset + 1) % C, offset)
    q = vector(q_ptr + row * D, D, TD).to(acc)
    k = vector(k_ptr + row * D, D, TD).to(acc)
    v = vector(v_ptr + row * D, D, TD).to(acc)
    scale = tl.zeros([1, TD], acc)
    shift = tl.zeros([1, TD], acc)
    if NORM:
        scale += vector(scale_ptr + (row % H) * D, D, TD)[None, :]
        shift += vector(shift_ptr + (row % H) * D, D, TD)[None, :]

    # forward pass of the keys
    z = tl.zeros([TD], acc)
    for e in range(0, E, BE):
        a = k
        if DEPTH == 2:
            a = gelu(tl.sum(k[:, None] * tile(up_w, 0, e, D, E, TD, BE), 0))
        z += tl.sum(a[:, None] * tile(down_w, e, 0, E, D, BE, TD), 0)
    error = loss_error(k[None, :], v[None, :], z[None, :], scale, shift, D, RESIDUAL, NORM)
    d = tl.sum(loss_slope(error, z[None, :], scale, clip, D, NORM, CLIP), 0)
    tl.store(loss_ptr + row, tl.sum(tl.sum(error * error, 1), 0))

    gate = gates_ptr + (gate_layers - 1) * rows + row
    kind = gate_layers * rows
    theta, eta, alpha = tl.load(gate), tl.load(gate + kind), tl.load(gate + 2 * kind)
    if DEPTH == 2:
        gate = gates_ptr + row
        up_theta, up_eta, up_alpha = tl.load(gate), tl.load(gate + kind), tl.load(gate + 2 * kind)
    z = tl.zeros([TD], acc)
    for e in range(0, E, BE):
        w = tile(down_w, e, 0, E, D, BE, TD)
        a = k
        x = q
        if DEPTH == 2:
            w_up = tile(up_w, 0, e, D, E, TD, BE)
            hidden = tl.sum(k[:, None] * w_up, 0)
            a = gelu(hidden)
            slope = tl.sum(w * d[None, :], 1) * gelu_slope(hidden)
            m = tile(up, 0, e, D, E, TD, BE)
            s = tile(up_s, 0, e, D, E, TD, BE)
            base = tl.zeros_like(m)
            if BASE:
                base = tile(up_base + (row % H) * D * E, 0, e, D, E, TD, BE)
            m, s = _moved(m, s, k, slope, up_theta, up_eta, up_alpha, base, real)
            put(up_out + state, m, 0, e, D, E)
            put(up_momentum_out + state, s, 0, e, D, E)
            put(up_anchor_out + state, tl.where(end == 0, m, w_up), 0, e, D, E)
            x = gelu(tl.sum(q[:, None] * m, 0))
        m_down = tile(down, e, 0, E, D, BE, TD)
        s_down = tile(down_s, e, 0, E, D, BE, TD)
        base_down = tl.zeros_like(m_down)
        if BASE:
            base_down = tile(down_base + (row % H) * D * E, e, 0, E, D, BE, TD)
        m_down, s_down = _moved(m_down, s_down, a, d, theta, eta, alpha, base_down, real)
        put(down_out + state, m_down, e, 0, E, D)
        put(down_momentum_out + state, s_down, e, 0, E, D)
        put(down_anchor_out + state, tl.where(end == 0, m_down, w), e, 0, E, D)
        z += tl.sum(x[:, None] * m_down, 0)
    y = z[None, :]
    if NORM:
        unit, _ = normalize(y, D)
        y = unit * scale + shift
    if RESIDUAL:
        y += q[None, :]
    put(y_ptr + row * D, tl.where(real, y, 0).to(y_ptr.dtype.element_ty), 0, 0, 1, D)


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    weights: list[Tensor],
    momentum: list[Tensor],
    anchor: list[Tensor],
    initial: list[Tensor],
    norm: list[Tensor],
    base: list[Tensor],
    offset: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    form: MemoryNetwork,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Launches `memory_step` for one token; arguments and results as in `fused_memory_step`."""
    batch, heads, width = q.shape
    hidden = weights[-1].shape[2]
    q, k, v, gates, offset = contiguous([q, k, v, gates, offset])
    groups = (weights, momentum, anchor, initial, norm, base)
    weights, momentum, anchor, initial, norm, base = map(contiguous, groups)
    out = [torch.empty_like(w) for w in (*weights, *momentum, *anchor)]
    new, moved, anchored = out[: form.depth], out[form.depth : 2 * form.depth], out[2 * form.depth :]
    initial = initial or [*weights, *momentum]
    y, loss = torch.empty_like(q), gates.new_empty(batch, heads)
    memory_step[(batch * heads,)](
        q, k, v, gates, weights[0], weights[-1], momentum[0], momentum[-1], anchor[0], anchor[-1],
        initial[0], initial[form.depth - 1], initial[form.depth], initial[-1], *(norm or [y, y]),
        base[0] if base else y, base[-1] if base else y, offset,
        offset if mask is None else mask, offset if reset is None else reset, new[0], new[-1], moved[0],
        moved[-1], anchored[0], anchored[-1], y, loss, batch * heads, gates.shape[1],
        form.grad_clip or 0.0, H=heads, C=chunk_size, D=width, E=hidden, TD=power_of_two(width),
        BE=min(32, power_of_two(hidden)) if form.depth == 2 else power_of_two(width),
        DEPTH=form.depth, RESIDUAL=form.residual, NORM=form.norm, CLIP=form.grad_clip is not None,
        MASK=mask is not None, RESET=reset is not None, BASE=bool(base),
    )  # fmt: skip
    return y, loss, new, moved, anchored
