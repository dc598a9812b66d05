"""The read pass: one program per row and block of R tokens (a whole number of chunks); the programs are independent.

M and S are the state at the block's start, (a_{l-1}, d_l) the writes of the block's tokens in layer l, x the input of
layer l for the queries: `z_l = start (x M_l) + lag (x S_l) - ((x a_{l-1}^T) * mix) d_l`, and `x M_0` besides with
BASE (see `state.py`). The weights of a single token are never formed. `docs/exact_form.md` derives the formula.
"""

import triton
import triton.language as tl

from titanslab.memory.gpu.tiles import (
    gelu,
    gelu_slope,
    normalize,
    normalize_backward,
    product,
    put,
    put_vector,
    tile,
    vector,
)


@triton.jit
def _products(
    q, k, up, down, up_base, down_base, active_ptr, slope_ptr, query_hidden_ptr,
    up_start, up_lag, up_mix, down_start, down_lag,
    D: tl.constexpr, E: tl.constexpr, R: tl.constexpr, TR: tl.constexpr, TD: tl.constexpr, BE: tl.constexpr,
    DEPTH: tl.constexpr, BASE: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state's part of z_L, and the scores `x a^T` of the last layer; KEEP stores the queries' z_1."""
    SIZE: tl.constexpr = D * E
    z = tl.zeros([TR, TD], q.dtype)
    score = tl.zeros([TR, TR], q.dtype)
    if DEPTH == 2:
        mixed = product(q, tl.trans(k), PRECISION) * up_mix
    for e in range(0, E, BE):
        if DEPTH == 2:
            hidden = up_start * product(q, tile(up, 0, e, D, E, TD, BE), PRECISION)
            hidden += up_lag * product(q, tile(up + SIZE, 0, e, D, E, TD, BE), PRECISION)
            hidden -= product(mixed, tile(slope_ptr, 0, e, R, E, TR, BE), PRECISION)
            if BASE:
                hidden += product(q, tile(up_base, 0, e, D, E, TD, BE), PRECISION)
            if KEEP:
                put(query_hidden_ptr, hidden, 0, e, R, E)
            x = gelu(hidden)
            a = tile(active_ptr, 0, e, R, E, TR, BE)
        else:
            x = q
            a = k
        z += down_start * product(x, tile(down, e, 0, E, D, BE, TD), PRECISION)
        z += down_lag * product(x, tile(down + SIZE, e, 0, E, D, BE, TD), PRECISION)
        if BASE:
            z += product(x, tile(down_base, e, 0, E, D, BE, TD), PRECISION)
        score += product(x, tl.trans(a), PRECISION)
    return z, score


@triton.jit(do_not_specialize=["rows", "blocks", "gate_layers"])
def read_forward(
    q_ptr, k_ptr,  # [blocks, rows, R, D]
    up_slots, down_slots,  # states at every block's start: [blocks, rows, 2 D, E], [blocks, rows, 2 E, D]
    scale_ptr, shift_ptr,  # [H, D]
    up_base_ptr, down_base_ptr,  # M_0, read with BASE alone: [H, D, E], [H, E, D]
    start_ptr, lag_ptr, mix_ptr,  # [G, blocks, rows, R], the same, [G, blocks, rows, R, R]
    active_ptr, slope_ptr, d_ptr,  # a_1, d_1 [blocks, rows, R, E], d_L [blocks, rows, R, D]
    y_ptr,  # out: [blocks, rows, R, D]
    rows, blocks, gate_layers,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TR: tl.constexpr,
    TD: tl.constexpr, BE: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr,
    BASE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    acc = d_ptr.dtype.element_ty
    place = block * rows + row
    state = place * 2 * D * E
    last = ((gate_layers - 1) * blocks + block) * rows + row
    q = tile(q_ptr + place * R * D, 0, 0, R, D, TR, TD).to(acc)
    k = tile(k_ptr + place * R * D, 0, 0, R, D, TR, TD).to(acc)
    up_start = vector(start_ptr + place * R, R, TR)[:, None]
    up_lag = vector(lag_ptr + place * R, R, TR)[:, None]
    up_mix = tile(mix_ptr + place * R * R, 0, 0, R, R, TR, TR)
    down_start = vector(start_ptr + last * R, R, TR)[:, None]
    down_lag = vector(lag_ptr + last * R, R, TR)[:, None]
    z, score = _products(
        q, k, up_slots + state, down_slots + state, up_base_ptr + (row % H) * D * E, down_base_ptr + (row % H) * D * E,
        active_ptr + place * R * E, slope_ptr + place * R * E, slope_ptr, up_start, up_lag, up_mix, down_start,
        down_lag, D, E, R, TR, TD, BE, DEPTH, BASE, False, PRECISION,
    )  # fmt: skip
    score *= tile(mix_ptr + last * R * R, 0, 0, R, R, TR, TR)
    z -= product(score, tile(d_ptr + place * R * D, 0, 0, R, D, TR, TD), PRECISION)
    if NORM:
        unit, _ = normalize(z, D)
        head = (row % H) * D
        z = unit * vector(scale_ptr + head, D, TD)[None, :] + vector(shift_ptr + head, D, TD)[None, :]
    if RESIDUAL:
        z += q
    put(y_ptr + place * R * D, z.to(y_ptr.dtype.element_ty), 0, 0, R, D)


@triton.jit(do_not_specialize=["rows", "blocks", "gate_layers"])
def read_backward(
    dy_ptr, q_ptr, k_ptr, up_slots, down_slots, scale_ptr, up_base_ptr, down_base_ptr, start_ptr, lag_ptr, mix_ptr,
    active_ptr, slope_ptr, d_ptr,
    dq_ptr, dk_ptr,  # out: [blocks, rows, R, D]
    query_hidden_ptr, query_slope_ptr,  # out: the queries' z_1 and its gradient [blocks, rows, R, E]
    dz_ptr,  # out: gradient of the queries' z_L [blocks, rows, R, D]
    d_hidden_ptr, d_slope_ptr, d_d_ptr,  # out: the reads' gradients of a_1, d_1 (R, E) and d_L (R, D)
    d_start_ptr, d_lag_ptr, d_mix_ptr,  # out: [DEPTH, blocks, rows, R], the same, [DEPTH, blocks, rows, R, R]
    d_scale_ptr, d_shift_ptr,  # out: [blocks, rows, D]
    rows, blocks, gate_layers,
    H: tl.constexpr, R: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TR: tl.constexpr,
    TD: tl.constexpr, BE: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr,
    BASE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Backward of `read_forward` without the gradients of state and base, which are computed from dz elsewhere."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    acc = d_ptr.dtype.element_ty
    SIZE: tl.constexpr = D * E
    place = block * rows + row
    state = place * 2 * SIZE
    last = ((gate_layers - 1) * blocks + block) * rows + row
    into = ((DEPTH - 1) * blocks + block) * rows + row
    wide, narrow = place * R * E, place * R * D
    up_base, down_base = up_base_ptr + (row % H) * SIZE, down_base_ptr + (row % H) * SIZE
    q = tile(q_ptr + narrow, 0, 0, R, D, TR, TD).to(acc)
    k = tile(k_ptr + narrow, 0, 0, R, D, TR, TD).to(acc)
    d = tile(d_ptr + narrow, 0, 0, R, D, TR, TD)
    up_start = vector(start_ptr + place * R, R, TR)[:, None]
    up_lag = vector(lag_ptr + place * R, R, TR)[:, None]
    up_mix = tile(mix_ptr + place * R * R, 0, 0, R, R, TR, TR)
    down_start = vector(start_ptr + last * R, R, TR)[:, None]
    down_lag = vector(lag_ptr + last * R, R, TR)[:, None]
    down_mix = tile(mix_ptr + last * R * R, 0, 0, R, R, TR, TR)
    z, score = _products(
        q, k, up_slots + state, down_slots + state, up_base, down_base, active_ptr + wide, slope_ptr + wide,
        query_hidden_ptr + wide, up_start, up_lag, up_mix, down_start, down_lag, D, E, R, TR, TD, BE, DEPTH, BASE,
        True, PRECISION,
    )  # fmt: skip
    z -= product(score * down_mix, d, PRECISION)
    dy = tile(dy_ptr + narrow, 0, 0, R, D, TR, TD).to(acc)
    dz = dy
    if NORM:
        unit, rstd = normalize(z, D)
        put_vector(d_scale_ptr + place * D, tl.sum(dy * unit, 0), D)
        put_vector(d_shift_ptr + place * D, tl.sum(dy, 0), D)
        scale = vector(scale_ptr + (row % H) * D, D, TD)[None, :]
        dz = normalize_backward(dy * scale, unit, rstd, D)
    put(dz_ptr + narrow, dz, 0, 0, R, D)
    d_mixed = -product(dz, tl.trans(d), PRECISION)
    put(d_mix_ptr + into * R * R, d_mixed * score, 0, 0, R, R)
    put(d_d_ptr + narrow, -product(tl.trans(score * down_mix), dz, PRECISION), 0, 0, R, D)
    d_score = d_mixed * down_mix
    if DEPTH == 2:
        tl.debug_barrier()  # the loop below loads z_1 with another assignment of elements to threads

    d_start = tl.zeros([TR], acc)
    d_lag = tl.zeros([TR], acc)
    dq = tl.zeros([TR, TD], acc)
    dk = tl.zeros([TR, TD], acc)
    if DEPTH == 2:
        raw = product(q, tl.trans(k), PRECISION)
        through_m = tl.zeros([TR, TD], acc)
        through_s = tl.zeros([TR, TD], acc)
        d_mixed = tl.zeros([TR, TR], acc)
    for e in range(0, E, BE):
        if DEPTH == 2:
            hidden = tile(query_hidden_ptr + wide, 0, e, R, E, TR, BE)
            x = gelu(hidden)
            a = tile(active_ptr + wide, 0, e, R, E, TR, BE)
        else:
            x = q
            a = k
        by_m = product(dz, tl.trans(tile(down_slots + state, e, 0, E, D, BE, TD)), PRECISION)
        by_s = product(dz, tl.trans(tile(down_slots + state + SIZE, e, 0, E, D, BE, TD)), PRECISION)
        d_start += tl.sum(x * by_m, 1)
        d_lag += tl.sum(x * by_s, 1)
        dx = down_start * by_m + down_lag * by_s + product(d_score, a, PRECISION)
        if BASE:
            dx += product(dz, tl.trans(tile(down_base, e, 0, E, D, BE, TD)), PRECISION)
        da = product(tl.trans(d_score), x, PRECISION)
        if DEPTH == 2:
            put(d_hidden_ptr + wide, da, 0, e, R, E)
            slope = dx * gelu_slope(hidden)
            put(query_slope_ptr + wide, slope, 0, e, R, E)
            put(d_slope_ptr + wide, -product(tl.trans(raw * up_mix), slope, PRECISION), 0, e, R, E)
            written = tile(slope_ptr + wide, 0, e, R, E, TR, BE)
            d_mixed -= product(slope, tl.trans(written), PRECISION)
            through_m += product(slope, tl.trans(tile(up_slots + state, 0, e, D, E, TD, BE)), PRECISION)
            through_s += product(slope, tl.trans(tile(up_slots + state + SIZE, 0, e, D, E, TD, BE)), PRECISION)
            if BASE:
                dq += product(slope, tl.trans(tile(up_base, 0, e, D, E, TD, BE)), PRECISION)
        else:
            dq += dx
            dk += da
    put_vector(d_start_ptr + into * R, d_start, R)
    put_vector(d_lag_ptr + into * R, d_lag, R)
    if DEPTH == 2:
        put(d_mix_ptr + place * R * R, d_mixed * raw, 0, 0, R, R)
        put_vector(d_start_ptr + place * R, tl.sum(q * through_m, 1), R)
        put_vector(d_lag_ptr + place * R, tl.sum(q * through_s, 1), R)
        d_raw = d_mixed * up_mix
        dq += up_start * through_m + up_lag * through_s + product(d_raw, k, PRECISION)
        dk = product(tl.trans(d_raw), q, PRECISION)
    if RESIDUAL:
        dq += dy
    put(dq_ptr + narrow, dq.to(dq_ptr.dtype.element_ty), 0, 0, R, D)
    put(dk_ptr + narrow, dk, 0, 0, R, D)
