"""Backward of the state pass: one program per (row, head) walks a group's chunks from the last to the first.

It carries the gradient of the state (in registers where RESIDENT, else through the L2 cache, in place),
and adds what the reads of a block ask of the state at the block's start. Formulas as in
`chunk.write_chunk_backward`.
"""

# Triton drops branches on compile-time values, which only stand alone
# ruff: noqa: SIM102

import triton
import triton.language as tl

from titanslab.memory.kernels.tiles import (
    gelu,
    gelu_curve,
    gelu_slope,
    loss_error,
    loss_slope_backward,
    product,
    put,
    put_vector,
    tile,
    vector,
)


@triton.jit
def _add(ptr, value, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    before = tile(ptr, row, column, ROWS, COLUMNS, value.shape[0], value.shape[1])
    put(ptr, before + value, row, column, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["chunks", "first_chunk", "rows", "gate_layers"])
def state_backward(
    k_ptr, v_ptr,  # [blocks, rows, R, D]
    up_ptr, down_ptr,  # states at every chunk's start: [chunks + 1, rows, 2 D, E], [chunks + 1, rows, 2 E, D]
    up_anchor, down_anchor, scale_ptr, shift_ptr, ends_ptr, mixes_ptr, fresh_ptr, goes_on_ptr, last_ptr,
    hidden_ptr, slope_ptr, z_ptr, d_ptr,  # as `state_forward` left them
    query_ptr, query_hidden_ptr, query_slope_ptr, query_dz_ptr, start_ptr, lag_ptr,  # for the reads' share
    d_hidden_ptr, d_slope_ptr, d_d_ptr, dk_in_ptr,  # reads' gradients of a_1, d_1 (overwritten), d_L, k
    d_up_running, d_down_running,  # gradient of the anchor of the chunk `last`
    d_up_ptr, d_down_ptr,  # gradient of the state, in place: at the group's end, then at its start
    d_up_anchor, d_down_anchor, d_up_initial, d_down_initial,  # added to
    dk_ptr, dv_ptr,  # out: [blocks, rows, R, D]
    d_ends_ptr, d_mixes_ptr,  # out: [DEPTH, blocks, rows, R / C, 3], [2, DEPTH, blocks, rows, R]
    d_scale_ptr, d_shift_ptr,  # out: [rows, D]
    chunks, first_chunk, rows, gate_layers, clip,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TR: tl.constexpr,
    TC: tl.constexpr, TD: tl.constexpr, BE: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    NORM: tl.constexpr, CLIP: tl.constexpr, RAGGED: tl.constexpr, ANCHOR: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    acc = down_ptr.dtype.element_ty
    SIZE: tl.constexpr = D * E
    IN_BLOCK: tl.constexpr = R // C
    blocks = chunks // IN_BLOCK
    last_layer = gate_layers - 1
    scale = tl.zeros([1, TD], acc)
    shift = tl.zeros([1, TD], acc)
    if NORM:
        scale += vector(scale_ptr + (row % H) * D, D, TD)[None, :]
        shift += vector(shift_ptr + (row % H) * D, D, TD)[None, :]
    d_scale = tl.zeros([TD], acc)
    d_shift = tl.zeros([TD], acc)
    d_up = d_up_ptr + row * 2 * SIZE
    d_down = d_down_ptr + row * 2 * SIZE
    if RESIDENT:
        dm_down = tile(d_down, 0, 0, E, D, BE, TD)
        ds_down = tile(d_down + SIZE, 0, 0, E, D, BE, TD)
        if DEPTH == 2:
            dm_up = tile(d_up, 0, 0, D, E, TD, BE)
            ds_up = tile(d_up + SIZE, 0, 0, D, E, TD, BE)
    for step in range(chunks):
        i = chunks - 1 - step
        block = i // IN_BLOCK
        place = block * rows + row
        at = place * R + (i % IN_BLOCK) * C
        state = (i * rows + row) * 2 * SIZE
        goes_on = False
        down_weights = down_ptr + state
        up_weights = up_ptr + state
        if ANCHOR:
            goes_on = (i + first_chunk == 0) & (tl.load(goes_on_ptr + row) != 0)
            if goes_on:
                down_weights = down_anchor + row * SIZE
                up_weights = up_anchor + row * SIZE
        k = tile(k_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
        v = tile(v_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
        d = tile(d_ptr + at * D, 0, 0, C, D, TC, TD)
        z = tile(z_ptr + at * D, 0, 0, C, D, TC, TD)
        layer_place = (last_layer * blocks + block) * rows + row
        ends = ends_ptr + (layer_place * IN_BLOCK + i % IN_BLOCK) * 3
        down_start, down_lag, down_end = tl.load(ends), tl.load(ends + 1), tl.load(ends + 2)
        mixes = mixes_ptr + layer_place * R + (i % IN_BLOCK) * C
        layers_apart = blocks * rows * R * gate_layers
        down_now, down_later = vector(mixes, C, TC)[:, None], vector(mixes + layers_apart, C, TC)[:, None]
        if DEPTH == 2:
            ends = ends_ptr + (place * IN_BLOCK + i % IN_BLOCK) * 3
            up_start, up_lag, up_end = tl.load(ends), tl.load(ends + 1), tl.load(ends + 2)
            up_now = vector(mixes_ptr + at, C, TC)[:, None]
            up_later = vector(mixes_ptr + layers_apart + at, C, TC)[:, None]
            by_now = tl.zeros([TC, TD], acc)
            by_later = tl.zeros([TC, TD], acc)
            up_mm = tl.zeros([TD], acc)
            up_sm = tl.zeros([TD], acc)
            up_ss = tl.zeros([TD], acc)

        # through M' = start M + lag S - (a * now)^T d and S', and d_1 = (d_L W_L^T) gelu'(z_1)
        d_d = tile(d_d_ptr + at * D, 0, 0, C, D, TC, TD)
        dk = tile(dk_in_ptr + at * D, 0, 0, C, D, TC, TD)
        d_now = tl.zeros([TC], acc)
        d_later = tl.zeros([TC], acc)
        down_mm = tl.zeros([TD], acc)
        down_sm = tl.zeros([TD], acc)
        down_ss = tl.zeros([TD], acc)
        for e in range(0, E, BE):
            if not RESIDENT:
                dm_down = tile(d_down, e, 0, E, D, BE, TD)
                ds_down = tile(d_down + SIZE, e, 0, E, D, BE, TD)
            m = tile(down_ptr + state, e, 0, E, D, BE, TD)
            s = tile(down_ptr + state + SIZE, e, 0, E, D, BE, TD)
            if DEPTH == 2:
                hidden = tile(hidden_ptr + at * E, 0, e, C, E, TC, BE)
                a = gelu(hidden)
            else:
                a = k
            dw_now = product(d, tl.trans(dm_down), PRECISION)
            dw_later = product(d, tl.trans(ds_down), PRECISION)
            d_now -= tl.sum(a * dw_now, 1)
            d_later -= tl.sum(a * dw_later, 1)
            da = -(down_now * dw_now + down_later * dw_later)
            d_d -= product(a * down_now, dm_down, PRECISION) + product(a * down_later, ds_down, PRECISION)
            down_mm += tl.sum(m * dm_down, 0)
            down_sm += tl.sum(s * dm_down, 0)
            down_ss += tl.sum(s * ds_down, 0)
            if DEPTH == 2:
                w = m
                if ANCHOR:
                    if goes_on:
                        w = tile(down_weights, e, 0, E, D, BE, TD)
                da += tile(d_hidden_ptr + at * E, 0, e, C, E, TC, BE)
                if not RESIDENT:
                    dm_up = tile(d_up, 0, e, D, E, TD, BE)
                    ds_up = tile(d_up + SIZE, 0, e, D, E, TD, BE)
                m = tile(up_ptr + state, 0, e, D, E, TD, BE)
                s = tile(up_ptr + state + SIZE, 0, e, D, E, TD, BE)
                slope = tile(slope_ptr + at * E, 0, e, C, E, TC, BE)
                by_now += product(slope, tl.trans(dm_up), PRECISION)
                by_later += product(slope, tl.trans(ds_up), PRECISION)
                d_slope = tile(d_slope_ptr + at * E, 0, e, C, E, TC, BE)
                d_slope -= product(k * up_now, dm_up, PRECISION) + product(k * up_later, ds_up, PRECISION)
                up_mm += tl.sum(m * dm_up, 1)
                up_sm += tl.sum(s * dm_up, 1)
                up_ss += tl.sum(s * ds_up, 1)
                back = product(d, tl.trans(w), PRECISION)
                first = gelu_slope(hidden)
                d_back = d_slope * first
                d_d += product(d_back, w, PRECISION)
                put(d_hidden_ptr + at * E, da * first + d_slope * back * gelu_curve(hidden), 0, e, C, E)
                put(d_slope_ptr + at * E, d_back, 0, e, C, E)
            else:
                dk += da
        ends = d_ends_ptr + ((((DEPTH - 1) * blocks + block) * rows + row) * IN_BLOCK + i % IN_BLOCK) * 3
        tl.store(ends, tl.sum(down_mm, 0))
        tl.store(ends + 1, tl.sum(down_sm, 0))
        tl.store(ends + 2, tl.sum(down_ss, 0))
        apart = blocks * rows * R
        mixes = d_mixes_ptr + (DEPTH - 1) * apart + at
        put_vector(mixes, d_now, C)
        put_vector(mixes + DEPTH * apart, d_later, C)
        if DEPTH == 2:
            dk -= up_now * by_now + up_later * by_later
            ends = d_ends_ptr + (place * IN_BLOCK + i % IN_BLOCK) * 3
            tl.store(ends, tl.sum(up_mm, 0))
            tl.store(ends + 1, tl.sum(up_sm, 0))
            tl.store(ends + 2, tl.sum(up_ss, 0))
            put_vector(d_mixes_ptr + at, -tl.sum(k * by_now, 1), C)
            put_vector(d_mixes_ptr + DEPTH * apart + at, -tl.sum(k * by_later, 1), C)
            tl.debug_barrier()  # the next loop loads what this one stored, in other layouts

        # through the gradient of the inner loss
        error = loss_error(k, v, z, scale, shift, D, RESIDUAL, NORM)
        dz, d_error, rows_of_scale = loss_slope_backward(d_d, error, z, scale, clip, D, NORM, CLIP)
        d_scale += tl.sum(rows_of_scale, 0)
        d_shift += tl.sum(d_error, 0)
        put(dv_ptr + at * D, (-d_error).to(dv_ptr.dtype.element_ty), 0, 0, C, D)
        if RESIDUAL:
            dk += d_error

        # through the keys' forward pass, and the state's gradient at the chunk's start
        here = False
        if RAGGED:
            here = tl.load(last_ptr + row) == i + first_chunk
        for e in range(0, E, BE):
            w = tile(down_weights, e, 0, E, D, BE, TD)
            if DEPTH == 2:
                hidden = tile(hidden_ptr + at * E, 0, e, C, E, TC, BE)
                d_hidden = tile(d_hidden_ptr + at * E, 0, e, C, E, TC, BE)
                d_back = tile(d_slope_ptr + at * E, 0, e, C, E, TC, BE)
                d_hidden += product(dz, tl.trans(w), PRECISION) * gelu_slope(hidden)
                dw_down = product(tl.trans(d_back), d, PRECISION)
                dw_down += product(tl.trans(gelu(hidden)), dz, PRECISION)
                dk += product(d_hidden, tl.trans(tile(up_weights, 0, e, D, E, TD, BE)), PRECISION)
                dw_up = product(tl.trans(k), d_hidden, PRECISION)
                if not RESIDENT:
                    dm_up = tile(d_up, 0, e, D, E, TD, BE)
                    ds_up = tile(d_up + SIZE, 0, e, D, E, TD, BE)
                ds_up = up_lag * dm_up + up_end * ds_up
                dm_up = up_start * dm_up
                if RAGGED:
                    if here:
                        dw_up += tile(d_up_running + row * SIZE, 0, e, D, E, TD, BE)
                if ANCHOR:
                    if goes_on:
                        _add(d_up_anchor + row * SIZE, dw_up, 0, e, D, E)
                        dw_up = tl.zeros_like(dw_up)
                dm_up += dw_up
                if not RESIDENT:
                    put(d_up, dm_up, 0, e, D, E)
                    put(d_up + SIZE, ds_up, 0, e, D, E)
            else:
                dk += product(dz, tl.trans(w), PRECISION)
                dw_down = product(tl.trans(k), dz, PRECISION)
            if not RESIDENT:
                dm_down = tile(d_down, e, 0, E, D, BE, TD)
                ds_down = tile(d_down + SIZE, e, 0, E, D, BE, TD)
            ds_down = down_lag * dm_down + down_end * ds_down
            dm_down = down_start * dm_down
            if RAGGED:
                if here:
                    dw_down += tile(d_down_running + row * SIZE, e, 0, E, D, BE, TD)
            if ANCHOR:
                if goes_on:
                    _add(d_down_anchor + row * SIZE, dw_down, e, 0, E, D)
                    dw_down = tl.zeros_like(dw_down)
            dm_down += dw_down
            if not RESIDENT:
                put(d_down, dm_down, e, 0, E, D)
                put(d_down + SIZE, ds_down, e, 0, E, D)
        put(dk_ptr + at * D, dk.to(dk_ptr.dtype.element_ty), 0, 0, C, D)

        # what the reads of this block ask of the state at its start
        if i % IN_BLOCK == 0:
            if not RESIDENT:
                tl.debug_barrier()
            asked = tile(query_dz_ptr + place * R * D, 0, 0, R, D, TR, TD)
            q = tile(query_ptr + place * R * D, 0, 0, R, D, TR, TD).to(acc)
            down_seen = vector(start_ptr + layer_place * R, R, TR)[:, None]
            down_lagged = vector(lag_ptr + layer_place * R, R, TR)[:, None]
            if DEPTH == 2:
                up_seen = tl.trans(q * vector(start_ptr + place * R, R, TR)[:, None])
                up_lagged = tl.trans(q * vector(lag_ptr + place * R, R, TR)[:, None])
            for e in range(0, E, BE):
                if not RESIDENT:
                    dm_down = tile(d_down, e, 0, E, D, BE, TD)
                    ds_down = tile(d_down + SIZE, e, 0, E, D, BE, TD)
                x = q
                if DEPTH == 2:
                    x = gelu(tile(query_hidden_ptr + place * R * E, 0, e, R, E, TR, BE))
                dm_down += product(tl.trans(x * down_seen), asked, PRECISION)
                ds_down += product(tl.trans(x * down_lagged), asked, PRECISION)
                if DEPTH == 2:
                    if not RESIDENT:
                        dm_up = tile(d_up, 0, e, D, E, TD, BE)
                        ds_up = tile(d_up + SIZE, 0, e, D, E, TD, BE)
                    slope = tile(query_slope_ptr + place * R * E, 0, e, R, E, TR, BE)
                    dm_up += product(up_seen, slope, PRECISION)
                    ds_up += product(up_lagged, slope, PRECISION)
                if RAGGED:
                    if tl.load(fresh_ptr + place) != 0:
                        _add(d_down_initial + row * 2 * SIZE, dm_down, e, 0, E, D)
                        _add(d_down_initial + row * 2 * SIZE + SIZE, ds_down, e, 0, E, D)
                        dm_down = tl.zeros_like(dm_down)
                        ds_down = tl.zeros_like(ds_down)
                        if DEPTH == 2:
                            _add(d_up_initial + row * 2 * SIZE, dm_up, 0, e, D, E)
                            _add(d_up_initial + row * 2 * SIZE + SIZE, ds_up, 0, e, D, E)
                            dm_up = tl.zeros_like(dm_up)
                            ds_up = tl.zeros_like(ds_up)
                if not RESIDENT:
                    put(d_down, dm_down, e, 0, E, D)
                    put(d_down + SIZE, ds_down, e, 0, E, D)
                    if DEPTH == 2:
                        put(d_up, dm_up, 0, e, D, E)
                        put(d_up + SIZE, ds_up, 0, e, D, E)
        if not RESIDENT:
            tl.debug_barrier()  # the chunk before loads what this one stored
    if RESIDENT:
        put(d_down, dm_down, 0, 0, E, D)
        put(d_down + SIZE, ds_down, 0, 0, E, D)
        if DEPTH == 2:
            put(d_up, dm_up, 0, 0, D, E)
            put(d_up + SIZE, ds_up, 0, 0, D, E)
    if NORM:
        put_vector(d_scale_ptr + row * D, d_scale, D)
        put_vector(d_shift_ptr + row * D, d_shift, D)
