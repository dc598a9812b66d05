"""Backward of the state pass: one program per (row, head) computes a group's blocks and chunks from last to first.

The gradient of the state is updated in place, from a block's end to its start. The read pass has stored its share of
the gradients of the writes (a_l, d_l). The kernel adds the share of the state at the block's end, and then, chunk by
chunk, the share of the chunk's anchor, which depends on the writes of the block's earlier chunks. The formulas are
those of `write_chunk_backward` in `memory/chunked/equations.py`, with each product with an anchor W written as
`x W = start (x M) + lag (x S) - ((x a^T) * mix) d`, and `x M_0` with BASE, whose gradient the caller takes.
"""

# Triton drops a branch on a compile-time value only if that value is the whole condition, so such `if`s stay nested
# ruff: noqa: SIM102

import triton
import triton.language as tl

from titanslab.memory.gpu.state import before_token
from titanslab.memory.gpu.tiles import (
    add,
    gelu,
    gelu_curve,
    gelu_slope,
    loss_error,
    loss_slope_backward,
    product,
    put,
    put_as,
    put_vector,
    tile,
    vector,
)


@triton.jit
def _start_of_chunk(ptr, place, other, C: tl.constexpr, R: tl.constexpr, TR: tl.constexpr):
    """Column `[TR, 1]`: a coefficient of the weights at the start of each token's chunk; `other` in the first chunk."""
    chunk_start = tl.arange(0, TR) // C * C
    return tl.load(ptr + place * R + chunk_start - 1, mask=(chunk_start > 0) & (chunk_start < R), other=other)[:, None]


@triton.jit(do_not_specialize=["blocks", "first_block", "rows", "gate_layers"])
def state_backward(
    k_ptr, v_ptr,  # [blocks, rows, R, D]
    up_slots, down_slots,  # states at every block's start: [blocks, rows, 2 D, E], [blocks, rows, 2 E, D]
    up_anchor, down_anchor, scale_ptr, shift_ptr, up_base_ptr, down_base_ptr, start_ptr, lag_ptr, mix_ptr, end_ptr,
    later_ptr, fresh_ptr, goes_on_ptr, last_ptr,
    hidden_ptr, active_ptr, slope_ptr, z_ptr, d_ptr,  # as `state_forward` left them
    query_ptr, query_hidden_ptr, query_slope_ptr, query_dz_ptr,  # inputs and gradients of the reads
    d_hidden_ptr, d_slope_ptr, d_d_ptr, dk_in_ptr,  # the reads' share of the gradients of a_1, d_1, d_L, k; overwritten
    dz_ptr,  # scratch: gradient of z_L [blocks, rows, R, D]
    d_up_running, d_down_running,  # gradient of the end anchor
    d_up_ptr, d_down_ptr,  # gradient of the state at the group's end; overwritten with that at its start
    d_up_anchor, d_down_anchor, d_up_initial, d_down_initial,  # out: accumulated
    dk_ptr, dv_ptr,  # out: [blocks, rows, R, D]
    d_ends_ptr,  # out: [DEPTH, blocks, rows, R / C, 3]: of start and lag of each chunk's last token, momentum end
    d_mixes_ptr, d_later_ptr,  # out: [DEPTH, blocks, rows, R / C, R], [DEPTH, blocks, rows, R]
    d_scale_ptr, d_shift_ptr,  # out: [rows, D]
    blocks, first_block, rows, gate_layers, clip,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TR: tl.constexpr,
    TC: tl.constexpr, TD: tl.constexpr, BE: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    NORM: tl.constexpr, CLIP: tl.constexpr, RAGGED: tl.constexpr, ANCHOR: tl.constexpr, BASE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    acc = d_down_ptr.dtype.element_ty
    SIZE: tl.constexpr = D * E
    IN_BLOCK: tl.constexpr = R // C
    scale = tl.zeros([1, TD], acc)
    shift = tl.zeros([1, TD], acc)
    if NORM:
        scale += vector(scale_ptr + (row % H) * D, D, TD)[None, :]
        shift += vector(shift_ptr + (row % H) * D, D, TD)[None, :]
    d_scale = tl.zeros([TD], acc)
    d_shift = tl.zeros([TD], acc)
    d_up = d_up_ptr + row * 2 * SIZE
    d_down = d_down_ptr + row * 2 * SIZE
    up_base = up_base_ptr + (row % H) * SIZE
    down_base = down_base_ptr + (row % H) * SIZE
    for step in range(blocks):
        block = blocks - 1 - step
        place = block * rows + row
        last_place = ((gate_layers - 1) * blocks + block) * rows + row
        into = ((DEPTH - 1) * blocks + block) * rows + row
        up_slot = up_slots + place * 2 * SIZE
        down_slot = down_slots + place * 2 * SIZE
        narrow = place * R * D
        wide = place * R * E

        # through M' = start M + lag S - (a * now)^T d and S' = end S - (a * later)^T d
        now = vector(mix_ptr + (last_place * R + R - 1) * R, R, TR)[:, None]
        later = vector(later_ptr + last_place * R, R, TR)[:, None]
        keys = tile(k_ptr + narrow, 0, 0, R, D, TR, TD).to(acc)
        slopes = tile(d_ptr + narrow, 0, 0, R, D, TR, TD)
        by_end = tl.zeros([TR, TD], acc)
        dk_all = tl.zeros([TR, TD], acc)
        d_now = tl.zeros([TR], acc)
        d_later = tl.zeros([TR], acc)
        down_mm = tl.zeros([TD], acc)
        down_sm = tl.zeros([TD], acc)
        down_ss = tl.zeros([TD], acc)
        for e in range(0, E, BE):
            dm = tile(d_down, e, 0, E, D, BE, TD)
            ds = tile(d_down + SIZE, e, 0, E, D, BE, TD)
            m = tile(down_slot, e, 0, E, D, BE, TD).to(acc)
            s = tile(down_slot + SIZE, e, 0, E, D, BE, TD).to(acc)
            if DEPTH == 2:
                a_all = tile(active_ptr + wide, 0, e, R, E, TR, BE).to(acc)
            else:
                a_all = keys
            dw_now = product(slopes, tl.trans(dm), PRECISION)
            dw_later = product(slopes, tl.trans(ds), PRECISION)
            d_now -= tl.sum(a_all * dw_now, 1)
            d_later -= tl.sum(a_all * dw_later, 1)
            by_end += product(a_all * now, dm, PRECISION) + product(a_all * later, ds, PRECISION)
            down_mm += tl.sum(m * dm, 0)
            down_sm += tl.sum(s * dm, 0)
            down_ss += tl.sum(s * ds, 0)
            da_all = -(now * dw_now + later * dw_later)
            if DEPTH == 2:
                add(d_hidden_ptr + wide, da_all, 0, e, R, E)
            else:
                dk_all += da_all
        add(d_d_ptr + narrow, -by_end, 0, 0, R, D)
        ends = d_ends_ptr + (into * IN_BLOCK + IN_BLOCK - 1) * 3
        tl.store(ends, tl.sum(down_mm, 0))
        tl.store(ends + 1, tl.sum(down_sm, 0))
        tl.store(ends + 2, tl.sum(down_ss, 0))
        put_vector(d_mixes_ptr + (into * IN_BLOCK + IN_BLOCK - 1) * R, d_now, R)
        put_vector(d_later_ptr + into * R, d_later, R)
        if DEPTH == 2:
            up_now = vector(mix_ptr + (place * R + R - 1) * R, R, TR)[:, None]
            up_later = vector(later_ptr + place * R, R, TR)[:, None]
            by_now = tl.zeros([TR, TD], acc)
            by_later = tl.zeros([TR, TD], acc)
            up_mm = tl.zeros([TD], acc)
            up_sm = tl.zeros([TD], acc)
            up_ss = tl.zeros([TD], acc)
            for e in range(0, E, BE):
                dm = tile(d_up, 0, e, D, E, TD, BE)
                ds = tile(d_up + SIZE, 0, e, D, E, TD, BE)
                m = tile(up_slot, 0, e, D, E, TD, BE).to(acc)
                s = tile(up_slot + SIZE, 0, e, D, E, TD, BE).to(acc)
                slope_all = tile(slope_ptr + wide, 0, e, R, E, TR, BE)
                by_now += product(slope_all, tl.trans(dm), PRECISION)
                by_later += product(slope_all, tl.trans(ds), PRECISION)
                d_slope_all = product(keys * up_now, dm, PRECISION) + product(keys * up_later, ds, PRECISION)
                add(d_slope_ptr + wide, -d_slope_all, 0, e, R, E)
                up_mm += tl.sum(m * dm, 1)
                up_sm += tl.sum(s * dm, 1)
                up_ss += tl.sum(s * ds, 1)
            dk_all -= up_now * by_now + up_later * by_later
            ends = d_ends_ptr + (place * IN_BLOCK + IN_BLOCK - 1) * 3
            tl.store(ends, tl.sum(up_mm, 0))
            tl.store(ends + 1, tl.sum(up_sm, 0))
            tl.store(ends + 2, tl.sum(up_ss, 0))
            put_vector(d_mixes_ptr + (place * IN_BLOCK + IN_BLOCK - 1) * R, -tl.sum(keys * by_now, 1), R)
            put_vector(d_later_ptr + place * R, -tl.sum(keys * by_later, 1), R)
        add(dk_in_ptr + narrow, dk_all, 0, 0, R, D)
        tl.debug_barrier()  # the chunks below load tiles that were stored above

        for back_step in range(IN_BLOCK):
            c = IN_BLOCK - 1 - back_step
            t = c * C
            at = place * R + t
            up_weights = up_slot
            down_weights = down_slot
            if ANCHOR:
                if (block + first_block + c == 0) & (tl.load(goes_on_ptr + row) != 0):
                    up_weights = up_anchor + row * SIZE
                    down_weights = down_anchor + row * SIZE
            k = tile(k_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
            v = tile(v_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
            d = tile(d_ptr + at * D, 0, 0, C, D, TC, TD)
            z = tile(z_ptr + at * D, 0, 0, C, D, TC, TD)
            d_d = tile(d_d_ptr + at * D, 0, 0, C, D, TC, TD)
            dk = tile(dk_in_ptr + at * D, 0, 0, C, D, TC, TD)
            down_start, down_lag, down_mix = before_token(start_ptr, lag_ptr, mix_ptr, last_place, t, R, TR)
            d_start = tl.zeros([TC], acc)
            d_lag = tl.zeros([TC], acc)
            if IN_BLOCK > 1:
                k_before = tile(k_ptr + narrow, 0, 0, t, D, TR, TD).to(acc)
                d_before = tile(d_ptr + narrow, 0, 0, t, D, TR, TD)
                k_score = product(k, tl.trans(k_before), PRECISION)
                a_score = k_score
                from_before = tl.zeros([TR, TD], acc)
                d_mix = tl.zeros([TR], acc)

            # through d_1 = (d_2 W_2^T) gelu'(z_1)
            if DEPTH == 2:
                up_start, up_lag, up_mix = before_token(start_ptr, lag_ptr, mix_ptr, place, t, R, TR)
                by_m = tl.zeros([TC, TD], acc)
                by_s = tl.zeros([TC, TD], acc)
                if IN_BLOCK > 1:
                    d_score = product(d, tl.trans(d_before), PRECISION)
                    mixed = d_score * down_mix
                    a_score = tl.zeros([TC, TR], acc)
                    back_score = tl.zeros([TC, TR], acc)
                for e in range(0, E, BE):
                    hidden = tile(hidden_ptr + at * E, 0, e, C, E, TC, BE)
                    w = tile(down_weights, e, 0, E, D, BE, TD)
                    back = down_start * product(d, tl.trans(w), PRECISION)
                    d_slope = tile(d_slope_ptr + at * E, 0, e, C, E, TC, BE)
                    first = gelu_slope(hidden)
                    d_back = d_slope * first
                    by_m += product(d_back, w, PRECISION)
                    if BASE:
                        w_base = tile(down_base, e, 0, E, D, BE, TD)
                        back += product(d, tl.trans(w_base), PRECISION)
                        d_d += product(d_back, w_base, PRECISION)
                    if IN_BLOCK > 1:
                        w_lag = tile(down_slot + SIZE, e, 0, E, D, BE, TD)
                        a_before = tile(active_ptr + wide, 0, e, t, E, TR, BE)
                        back += down_lag * product(d, tl.trans(w_lag), PRECISION)
                        back -= product(mixed, a_before, PRECISION)
                        by_s += product(d_back, w_lag, PRECISION)
                        back_score += product(d_back, tl.trans(a_before), PRECISION)
                        a = tile(active_ptr + at * E, 0, e, C, E, TC, BE)
                        a_score += product(a, tl.trans(a_before), PRECISION)
                        add(d_hidden_ptr + wide, -product(tl.trans(mixed), d_back, PRECISION), 0, e, t, E)
                    d_hidden = tile(d_hidden_ptr + at * E, 0, e, C, E, TC, BE)
                    put(d_hidden_ptr + at * E, d_hidden * first + d_slope * back * gelu_curve(hidden), 0, e, C, E)
                    put(d_slope_ptr + at * E, d_back, 0, e, C, E)
                d_d += down_start * by_m
                if IN_BLOCK > 1:
                    d_d += down_lag * by_s - product(back_score * down_mix, d_before, PRECISION)
                    d_start += tl.sum(by_m * d, 1)
                    d_lag += tl.sum(by_s * d, 1)
                    d_mix -= tl.sum(back_score * d_score, 0)
                    from_before -= product(tl.trans(back_score * down_mix), d, PRECISION)

            # through the gradient of the inner loss
            error = loss_error(k, v, z, scale, shift, D, RESIDUAL, NORM)
            dz, d_error, rows_of_scale = loss_slope_backward(d_d, error, z, scale, clip, D, NORM, CLIP)
            d_scale += tl.sum(rows_of_scale, 0)
            d_shift += tl.sum(d_error, 0)
            put_as(dv_ptr + at * D, -d_error, 0, 0, C, D)
            put(dz_ptr + at * D, dz, 0, 0, C, D)
            if RESIDUAL:
                dk += d_error

            # through the keys' forward pass
            by_m = tl.zeros([TC, TD], acc)
            by_s = tl.zeros([TC, TD], acc)
            if IN_BLOCK > 1:
                z_score = product(dz, tl.trans(d_before), PRECISION)
                z_mixed = z_score * down_mix
                d_mix -= tl.sum(a_score * z_score, 0)
                from_before -= product(tl.trans(a_score * down_mix), dz, PRECISION)
                add(d_d_ptr + narrow, from_before, 0, 0, t, D)
                if DEPTH == 2:
                    k_mixed = k_score * up_mix
                    slope_score = tl.zeros([TC, TR], acc)
            if DEPTH == 2:
                tl.debug_barrier()  # the loop loads the gradient of z_1 with another assignment of elements to threads
            for e in range(0, E, BE):
                through_m = product(dz, tl.trans(tile(down_weights, e, 0, E, D, BE, TD)), PRECISION)
                da = down_start * through_m
                if BASE:
                    da += product(dz, tl.trans(tile(down_base, e, 0, E, D, BE, TD)), PRECISION)
                if IN_BLOCK > 1:
                    if DEPTH == 2:
                        a = tile(active_ptr + at * E, 0, e, C, E, TC, BE).to(acc)
                        a_before = tile(active_ptr + wide, 0, e, t, E, TR, BE).to(acc)
                    else:
                        a = k
                        a_before = k_before
                    through_s = product(dz, tl.trans(tile(down_slot + SIZE, e, 0, E, D, BE, TD)), PRECISION)
                    da += down_lag * through_s - product(z_mixed, a_before, PRECISION)
                    d_start += tl.sum(a * through_m, 1)
                    d_lag += tl.sum(a * through_s, 1)
                    a_from = -product(tl.trans(z_mixed), a, PRECISION)
                    if DEPTH == 2:
                        add(d_hidden_ptr + wide, a_from, 0, e, t, E)
                    else:
                        add(dk_in_ptr + narrow, a_from, 0, 0, t, D)
                if DEPTH == 2:
                    hidden = tile(hidden_ptr + at * E, 0, e, C, E, TC, BE)
                    d_hidden = tile(d_hidden_ptr + at * E, 0, e, C, E, TC, BE) + da * gelu_slope(hidden)
                    put(d_hidden_ptr + at * E, d_hidden, 0, e, C, E)
                    by_m += product(d_hidden, tl.trans(tile(up_weights, 0, e, D, E, TD, BE)), PRECISION)
                    if BASE:
                        dk += product(d_hidden, tl.trans(tile(up_base, 0, e, D, E, TD, BE)), PRECISION)
                    if IN_BLOCK > 1:
                        w_lag = tile(up_slot + SIZE, 0, e, D, E, TD, BE)
                        by_s += product(d_hidden, tl.trans(w_lag), PRECISION)
                        before = tile(slope_ptr + wide, 0, e, t, E, TR, BE)
                        slope_score += product(d_hidden, tl.trans(before), PRECISION)
                        add(d_slope_ptr + wide, -product(tl.trans(k_mixed), d_hidden, PRECISION), 0, e, t, E)
                else:
                    dk += da
            if DEPTH == 2:
                dk += up_start * by_m
            if IN_BLOCK > 1:
                if DEPTH == 2:
                    dk += up_lag * by_s - product(slope_score * up_mix, k_before, PRECISION)
                    add(dk_in_ptr + narrow, -product(tl.trans(slope_score * up_mix), k, PRECISION), 0, 0, t, D)
                if c > 0:
                    ends = d_ends_ptr + (into * IN_BLOCK + c - 1) * 3
                    tl.store(ends, tl.sum(d_start, 0))
                    tl.store(ends + 1, tl.sum(d_lag, 0))
                    put_vector(d_mixes_ptr + (into * IN_BLOCK + c - 1) * R, d_mix, R)
                    if DEPTH == 2:
                        ends = d_ends_ptr + (place * IN_BLOCK + c - 1) * 3
                        tl.store(ends, tl.sum(tl.sum(k * by_m, 1), 0))
                        tl.store(ends + 1, tl.sum(tl.sum(k * by_s, 1), 0))
                        mixes = d_mixes_ptr + (place * IN_BLOCK + c - 1) * R
                        put_vector(mixes, -tl.sum(k_score * slope_score, 0), R)
            put_as(dk_ptr + at * D, dk, 0, 0, C, D)
            tl.debug_barrier()  # the previous chunk loads tiles that this chunk stored

        # gradient of the state at the block's start: through the block's end, the chunks' anchors and the reads
        fresh = False
        here = False
        goes_on = False
        outside = tl.zeros([TR, 1], tl.int1)
        if RAGGED:
            fresh = tl.load(fresh_ptr + place) != 0
            last = tl.load(last_ptr + row)
            t_last = last % IN_BLOCK * C
            here = (last >= 0) & (last // IN_BLOCK == block + first_block)
        if ANCHOR:
            goes_on = (block + first_block == 0) & (tl.load(goes_on_ptr + row) != 0)
            here = here & ((goes_on == 0) | (t_last > 0))
            outside = (tl.arange(0, TR) < C)[:, None] & goes_on  # tokens whose anchor is the incoming one
        start = tl.load(start_ptr + last_place * R + R - 1)
        lag = tl.load(lag_ptr + last_place * R + R - 1)
        end = tl.load(end_ptr + last_place)
        at_first = tl.where(outside, 0, _start_of_chunk(start_ptr, last_place, 1, C, R, TR))
        behind = _start_of_chunk(lag_ptr, last_place, 0, C, R, TR)
        seen = vector(start_ptr + last_place * R, R, TR)[:, None]
        lagged = vector(lag_ptr + last_place * R, R, TR)[:, None]
        dz_all = tile(dz_ptr + narrow, 0, 0, R, D, TR, TD)
        asked = tile(query_dz_ptr + narrow, 0, 0, R, D, TR, TD)
        q = tile(query_ptr + narrow, 0, 0, R, D, TR, TD).to(acc)
        for e in range(0, E, BE):
            dm = tile(d_down, e, 0, E, D, BE, TD)
            ds = lag * dm + end * tile(d_down + SIZE, e, 0, E, D, BE, TD)
            dm = start * dm
            if DEPTH == 2:
                a_all = tile(active_ptr + wide, 0, e, R, E, TR, BE).to(acc)
                d_back_all = tile(d_slope_ptr + wide, 0, e, R, E, TR, BE)
                dm += product(tl.trans(d_back_all * at_first), slopes, PRECISION)
                ds += product(tl.trans(d_back_all * behind), slopes, PRECISION)
                x = gelu(tile(query_hidden_ptr + wide, 0, e, R, E, TR, BE))
            else:
                a_all = keys
                x = q
            dm += product(tl.trans(a_all * at_first), dz_all, PRECISION)
            ds += product(tl.trans(a_all * behind), dz_all, PRECISION)
            dm += product(tl.trans(x * seen), asked, PRECISION)
            ds += product(tl.trans(x * lagged), asked, PRECISION)
            if ANCHOR:
                if goes_on:
                    dw = product(tl.trans(tl.where(outside, a_all, 0)), dz_all, PRECISION)
                    if DEPTH == 2:
                        dw += product(tl.trans(tl.where(outside, d_back_all, 0)), slopes, PRECISION)
                    add(d_down_anchor + row * SIZE, dw, e, 0, E, D)
            if RAGGED:
                if here:
                    dw = tile(d_down_running + row * SIZE, e, 0, E, D, BE, TD)
                    dm += tl.load(start_ptr + last_place * R + t_last - 1, mask=t_last > 0, other=1) * dw
                    ds += tl.load(lag_ptr + last_place * R + t_last - 1, mask=t_last > 0, other=0) * dw
                if fresh:
                    add(d_down_initial + row * 2 * SIZE, dm, e, 0, E, D)
                    add(d_down_initial + row * 2 * SIZE + SIZE, ds, e, 0, E, D)
                    dm = tl.zeros_like(dm)
                    ds = tl.zeros_like(ds)
            put(d_down, dm, e, 0, E, D)
            put(d_down + SIZE, ds, e, 0, E, D)
        if DEPTH == 2:
            start = tl.load(start_ptr + place * R + R - 1)
            lag = tl.load(lag_ptr + place * R + R - 1)
            end = tl.load(end_ptr + place)
            at_first = tl.where(outside, 0, _start_of_chunk(start_ptr, place, 1, C, R, TR))
            k_first = tl.trans(keys * at_first)
            k_behind = tl.trans(keys * _start_of_chunk(lag_ptr, place, 0, C, R, TR))
            q_seen = tl.trans(q * vector(start_ptr + place * R, R, TR)[:, None])
            q_lagged = tl.trans(q * vector(lag_ptr + place * R, R, TR)[:, None])
            for e in range(0, E, BE):
                dm = tile(d_up, 0, e, D, E, TD, BE)
                ds = lag * dm + end * tile(d_up + SIZE, 0, e, D, E, TD, BE)
                dm = start * dm
                d_hidden_all = tile(d_hidden_ptr + wide, 0, e, R, E, TR, BE)
                query_slope = tile(query_slope_ptr + wide, 0, e, R, E, TR, BE)
                dm += product(k_first, d_hidden_all, PRECISION) + product(q_seen, query_slope, PRECISION)
                ds += product(k_behind, d_hidden_all, PRECISION) + product(q_lagged, query_slope, PRECISION)
                if ANCHOR:
                    if goes_on:
                        k_outside = tl.trans(tl.where(outside, keys, 0))
                        add(d_up_anchor + row * SIZE, product(k_outside, d_hidden_all, PRECISION), 0, e, D, E)
                if RAGGED:
                    if here:
                        dw = tile(d_up_running + row * SIZE, 0, e, D, E, TD, BE)
                        dm += tl.load(start_ptr + place * R + t_last - 1, mask=t_last > 0, other=1) * dw
                        ds += tl.load(lag_ptr + place * R + t_last - 1, mask=t_last > 0, other=0) * dw
                    if fresh:
                        add(d_up_initial + row * 2 * SIZE, dm, 0, e, D, E)
                        add(d_up_initial + row * 2 * SIZE + SIZE, ds, 0, e, D, E)
                        dm = tl.zeros_like(dm)
                        ds = tl.zeros_like(ds)
                put(d_up, dm, 0, e, D, E)
                put(d_up + SIZE, ds, 0, e, D, E)
        tl.debug_barrier()  # the previous block loads tiles that this block stored
    if NORM:
        put_vector(d_scale_ptr + row * D, d_scale, D)
        put_vector(d_shift_ptr + row * D, d_shift, D)
