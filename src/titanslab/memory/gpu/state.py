"""The state pass: one program per (row, head) computes blocks of R tokens, and the chunks of a block, in order.

W are the weights at a chunk's start, its anchor. With them, `z_1 = k W_1`, `a_1 = gelu(z_1)`, `z_2 = a_1 W_2`, `d_2` is
the gradient of the inner loss at z_2, and `d_1 = (d_2 W_2^T) gelu'(z_1)`. W is never formed: M and S remain the state
at the block's start, and a product with W is `x W = start (x M) + lag (x S) - ((x a^T) * mix) d` with the writes (a, d)
of the block's earlier chunks. The state is updated once per block, `M' = start M + lag S - (a * mix)^T d` and
`S' = end S - (a * later)^T d`, with the decay coefficients of the block's last token. Between two updates the products
read a copy of the state in their own precision, which is small enough for the L1 cache.

With BASE the memory forgets to M_0: the weights of states and anchors count from M_0, and each product with W has
`x M_0` besides.

The last layer is called "down" (`[E, D]`), the layer before it "up" (`[D, E]`). With depth 1 there is "down" alone,
with E = D and k as its input. Each loop over hidden columns takes BE of them per step.
"""

# Triton drops a branch on a compile-time value only if that value is the whole condition, so such `if`s stay nested
# ruff: noqa: SIM102

import triton
import triton.language as tl

from titanslab.memory.gpu.tiles import (
    gelu,
    gelu_slope,
    loss_error,
    loss_slope,
    product,
    put,
    put_as,
    put_vector,
    tile,
    vector,
)


@triton.jit
def copy_state(source, target, slot, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TC: tl.constexpr):
    """Copies `source` to the state `target` and to `slot`, the copy that the products read."""
    for i in range(0, ROWS, 16):
        part = tile(source, i, 0, ROWS, COLUMNS, 16, TC)
        put(target, part, i, 0, ROWS, COLUMNS)
        put_as(slot, part, i, 0, ROWS, COLUMNS)


@triton.jit
def before_token(start_ptr, lag_ptr, mix_ptr, place, t, R: tl.constexpr, TR: tl.constexpr):
    """Coefficients of the weights before token t of a block: scalars start and lag, mix `[1, TR]` of earlier writes."""
    at = place * R + t - 1
    j = tl.arange(0, TR)
    start = tl.load(start_ptr + at, mask=t > 0, other=1)
    lag = tl.load(lag_ptr + at, mask=t > 0, other=0)
    return start, lag, tl.load(mix_ptr + at * R + j, mask=j < t, other=0)[None, :]


@triton.jit(do_not_specialize=["blocks", "first_block", "rows", "gate_layers"])
def state_forward(
    k_ptr, v_ptr,  # [blocks, rows, R, D]
    up_ptr, down_ptr,  # the state, weights above momentum, in place: [rows, 2 D, E], [rows, 2 E, D]
    up_slots, down_slots,  # out: the same at each block's start [blocks, rows, ...]; the first block's is an input
    up_anchor, down_anchor,  # [rows, D, E], [rows, E, D]
    up_initial, down_initial,  # [rows, 2 D, E], [rows, 2 E, D]
    up_running, down_running,  # out: anchor of the chunk `last`
    scale_ptr, shift_ptr,  # [H, D]
    up_base_ptr, down_base_ptr,  # M_0, read with BASE alone: [H, D, E], [H, E, D]
    start_ptr, lag_ptr, mix_ptr,  # of M after each token: [G, blocks, rows, R] twice, [G, blocks, rows, R, R]
    end_ptr, later_ptr,  # of S after the block: [G, blocks, rows], [G, blocks, rows, R]
    fresh_ptr, goes_on_ptr, last_ptr,  # as in `Layout`: [blocks, rows], [rows], [rows]
    hidden_ptr, active_ptr, slope_ptr,  # out: z_1, a_1, d_1 [blocks, rows, R, E]
    z_ptr, d_ptr,  # out: z_L, d_L [blocks, rows, R, D]
    loss_ptr,  # out: [blocks, rows, R]
    blocks, first_block, rows, gate_layers, clip,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, D: tl.constexpr, E: tl.constexpr, TC: tl.constexpr,
    TR: tl.constexpr, TD: tl.constexpr, BE: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    NORM: tl.constexpr, CLIP: tl.constexpr, RAGGED: tl.constexpr, ANCHOR: tl.constexpr, BASE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    acc = down_ptr.dtype.element_ty
    SIZE: tl.constexpr = D * E
    IN_BLOCK: tl.constexpr = R // C
    scale = tl.zeros([1, TD], acc)
    shift = tl.zeros([1, TD], acc)
    if NORM:
        scale += vector(scale_ptr + (row % H) * D, D, TD)[None, :]
        shift += vector(shift_ptr + (row % H) * D, D, TD)[None, :]
    up = up_ptr + row * 2 * SIZE
    down = down_ptr + row * 2 * SIZE
    up_base = up_base_ptr + (row % H) * SIZE
    down_base = down_base_ptr + (row % H) * SIZE
    for block in range(blocks):
        place = block * rows + row
        # if the layers share their gates, both read layer 0
        last_place = ((gate_layers - 1) * blocks + block) * rows + row
        up_slot = up_slots + place * 2 * SIZE
        down_slot = down_slots + place * 2 * SIZE
        narrow = place * R * D
        wide = place * R * E
        if RAGGED:
            if tl.load(fresh_ptr + place) != 0:
                copy_state(down_initial + row * 2 * SIZE, down, down_slot, 2 * E, D, TD)
                if DEPTH == 2:
                    for e in range(0, E, BE):
                        part = tile(up_initial + row * 2 * SIZE, 0, e, 2 * D, E, 2 * TD, BE)
                        put(up, part, 0, e, 2 * D, E)
                        put_as(up_slot, part, 0, e, 2 * D, E)
                tl.debug_barrier()
        for c in range(IN_BLOCK):
            t = c * C
            at = place * R + t
            goes_on = False
            if ANCHOR:
                goes_on = (block + first_block + c == 0) & (tl.load(goes_on_ptr + row) != 0)
            up_weights = up_slot
            down_weights = down_slot
            if ANCHOR:
                if goes_on:
                    up_weights = up_anchor + row * SIZE
                    down_weights = down_anchor + row * SIZE
            k = tile(k_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
            v = tile(v_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
            down_start, down_lag, down_mix = before_token(start_ptr, lag_ptr, mix_ptr, last_place, t, R, TR)
            if IN_BLOCK > 1:
                score = tl.zeros([TC, TR], acc)
                d_before = tile(d_ptr + narrow, 0, 0, t, D, TR, TD)
                k_before = tile(k_ptr + narrow, 0, 0, t, D, TR, TD).to(acc)
            if DEPTH == 2:
                up_start, up_lag, up_mix = before_token(start_ptr, lag_ptr, mix_ptr, place, t, R, TR)
                if IN_BLOCK > 1:
                    mixed = product(k, tl.trans(k_before), PRECISION) * up_mix

            # forward pass of the keys
            z = tl.zeros([TC, TD], acc)
            for e in range(0, E, BE):
                if DEPTH == 2:
                    hidden = up_start * product(k, tile(up_weights, 0, e, D, E, TD, BE), PRECISION)
                    if BASE:
                        hidden += product(k, tile(up_base, 0, e, D, E, TD, BE), PRECISION)
                    if IN_BLOCK > 1:
                        hidden += up_lag * product(k, tile(up_slot + SIZE, 0, e, D, E, TD, BE), PRECISION)
                        hidden -= product(mixed, tile(slope_ptr + wide, 0, e, t, E, TR, BE), PRECISION)
                    put(hidden_ptr + at * E, hidden, 0, e, C, E)
                    a = gelu(hidden)
                    put_as(active_ptr + at * E, a, 0, e, C, E)
                else:
                    a = k
                z += down_start * product(a, tile(down_weights, e, 0, E, D, BE, TD), PRECISION)
                if BASE:
                    z += product(a, tile(down_base, e, 0, E, D, BE, TD), PRECISION)
                if IN_BLOCK > 1:
                    z += down_lag * product(a, tile(down_slot + SIZE, e, 0, E, D, BE, TD), PRECISION)
                    if DEPTH == 2:
                        a_before = tile(active_ptr + wide, 0, e, t, E, TR, BE)
                    else:
                        a_before = k_before
                    score += product(a, tl.trans(a_before), PRECISION)
            if IN_BLOCK > 1:
                z -= product(score * down_mix, d_before, PRECISION)
            error = loss_error(k, v, z, scale, shift, D, RESIDUAL, NORM)
            d = loss_slope(error, z, scale, clip, D, NORM, CLIP)
            put(z_ptr + at * D, z, 0, 0, C, D)
            put(d_ptr + at * D, d, 0, 0, C, D)
            put_vector(loss_ptr + at, tl.sum(error * error, 1), C)

            # gradient at the first layer's product
            if DEPTH == 2:
                tl.debug_barrier()  # the loop below loads z_1 with another assignment of elements to threads
                if IN_BLOCK > 1:
                    mixed = product(d, tl.trans(d_before), PRECISION) * down_mix
                for e in range(0, E, BE):
                    m = tile(down_weights, e, 0, E, D, BE, TD)
                    back = down_start * product(d, tl.trans(m), PRECISION)
                    if BASE:
                        back += product(d, tl.trans(tile(down_base, e, 0, E, D, BE, TD)), PRECISION)
                    if IN_BLOCK > 1:
                        s = tile(down_slot + SIZE, e, 0, E, D, BE, TD)
                        back += down_lag * product(d, tl.trans(s), PRECISION)
                        back -= product(mixed, tile(active_ptr + wide, 0, e, t, E, TR, BE), PRECISION)
                    slope = back * gelu_slope(tile(hidden_ptr + at * E, 0, e, C, E, TC, BE))
                    put_as(slope_ptr + at * E, slope, 0, e, C, E)
            if RAGGED:
                here = tl.load(last_ptr + row) == (block + first_block) * IN_BLOCK + c
                if here & (goes_on == 0):
                    for e in range(0, E, BE):
                        w = down_start * tile(down, e, 0, E, D, BE, TD)
                        if IN_BLOCK > 1:
                            w += down_lag * tile(down + SIZE, e, 0, E, D, BE, TD)
                            if DEPTH == 2:
                                a_before = tile(active_ptr + wide, 0, e, t, E, TR, BE).to(acc)
                            else:
                                a_before = k_before
                            w -= product(tl.trans(a_before * tl.trans(down_mix)), d_before, PRECISION)
                        put(down_running + row * SIZE, w, e, 0, E, D)
                        if DEPTH == 2:
                            w = up_start * tile(up, 0, e, D, E, TD, BE)
                            if IN_BLOCK > 1:
                                w += up_lag * tile(up + SIZE, 0, e, D, E, TD, BE)
                                before = tile(slope_ptr + wide, 0, e, t, E, TR, BE)
                                w -= product(tl.trans(k_before * tl.trans(up_mix)), before, PRECISION)
                            put(up_running + row * SIZE, w, 0, e, D, E)
            tl.debug_barrier()  # the next chunk loads tiles that this chunk stored

        # Eqs. 13 and 14 over the block
        start = tl.load(start_ptr + last_place * R + R - 1)
        lag = tl.load(lag_ptr + last_place * R + R - 1)
        end = tl.load(end_ptr + last_place)
        now = vector(mix_ptr + (last_place * R + R - 1) * R, R, TR)[:, None]
        later = vector(later_ptr + last_place * R, R, TR)[:, None]
        keys = tile(k_ptr + narrow, 0, 0, R, D, TR, TD).to(acc)
        slopes = tile(d_ptr + narrow, 0, 0, R, D, TR, TD)
        for e in range(0, E, BE):
            if DEPTH == 2:
                a_all = tile(active_ptr + wide, 0, e, R, E, TR, BE).to(acc)
            else:
                a_all = keys
            m = tile(down, e, 0, E, D, BE, TD)
            s = tile(down + SIZE, e, 0, E, D, BE, TD)
            m = start * m + lag * s - product(tl.trans(a_all * now), slopes, PRECISION)
            s = end * s - product(tl.trans(a_all * later), slopes, PRECISION)
            put(down, m, e, 0, E, D)
            put(down + SIZE, s, e, 0, E, D)
            if block + 1 < blocks:
                next_slot = down_slot + rows * 2 * SIZE
                put_as(next_slot, m, e, 0, E, D)
                put_as(next_slot + SIZE, s, e, 0, E, D)
        if DEPTH == 2:
            start = tl.load(start_ptr + place * R + R - 1)
            lag = tl.load(lag_ptr + place * R + R - 1)
            end = tl.load(end_ptr + place)
            k_now = tl.trans(keys * vector(mix_ptr + (place * R + R - 1) * R, R, TR)[:, None])
            k_later = tl.trans(keys * vector(later_ptr + place * R, R, TR)[:, None])
            for e in range(0, E, BE):
                slope_all = tile(slope_ptr + wide, 0, e, R, E, TR, BE)
                m = tile(up, 0, e, D, E, TD, BE)
                s = tile(up + SIZE, 0, e, D, E, TD, BE)
                m = start * m + lag * s - product(k_now, slope_all, PRECISION)
                s = end * s - product(k_later, slope_all, PRECISION)
                put(up, m, 0, e, D, E)
                put(up + SIZE, s, 0, e, D, E)
                if block + 1 < blocks:
                    next_slot = up_slot + rows * 2 * SIZE
                    put_as(next_slot, m, 0, e, D, E)
                    put_as(next_slot + SIZE, s, 0, e, D, E)
        tl.debug_barrier()  # the next block loads tiles that this block stored
