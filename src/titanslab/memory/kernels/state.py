"""The state pass: one program per (row, head) walks the chunks and writes each into the memory.

At the weights W of a chunk's start (anchor), `z_1 = k W_1`, `a_1 = gelu(z_1)`, `z_2 = a_1 W_2`, the gradient
`d_2` of the inner loss, `d_1 = (d_2 W_2^T) gelu'(z_1)`; then, with the decay coefficients of the chunk's end,
`M' = start M + lag S - (a * now)^T d`, `S' = end S - (a * later)^T d`.

The last layer is "down" (`[E, D]`), the one before it "up" (`[D, E]`); with depth 1 there is only "down",
E = D and its input is k. RESIDENT keeps the state in registers over the whole walk; otherwise it passes
through the L2 cache in blocks of BE hidden columns, twice per chunk.
"""

# Triton drops branches on compile-time values, which only stand alone
# ruff: noqa: SIM102

import triton
import triton.language as tl

from titanslab.memory.kernels.tiles import (
    gelu,
    gelu_slope,
    loss_error,
    loss_slope,
    product,
    put,
    put_vector,
    tile,
    vector,
)


@triton.jit
def copy_state(source, target, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TC: tl.constexpr):
    for i in range(0, ROWS, 16):
        put(target, tile(source, i, 0, ROWS, COLUMNS, 16, TC), i, 0, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["chunks", "first_chunk", "rows", "gate_layers"])
def state_forward(
    k_ptr, v_ptr,  # [blocks, rows, R, D]
    up_ptr, down_ptr,  # states in slots: [slots, rows, 2 D, E] and [slots, rows, 2 E, D]; slot 0 is given
    up_anchor, down_anchor,  # [rows, D, E], [rows, E, D]
    up_initial, down_initial,  # [rows, 2 D, E], [rows, 2 E, D]
    up_running, down_running,  # out: anchor of the chunk `last`
    scale_ptr, shift_ptr,  # [H, D]
    ends_ptr,  # [G, blocks, rows, R / C, 3]: start, lag, momentum end
    mixes_ptr,  # [2, G, blocks, rows, R]: weights of the writes in M and in S
    fresh_ptr, goes_on_ptr, last_ptr,  # [blocks, rows], [rows], [rows]: resets, chunk 0 continues, last chunk
    hidden_ptr, slope_ptr,  # out: z_1, d_1 [blocks, rows, R, E]
    z_ptr, d_ptr,  # out: z_L, d_L [blocks, rows, R, D]
    loss_ptr,  # out: [blocks, rows, R]
    chunks, first_chunk, rows, gate_layers, clip,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, D: tl.constexpr, E: tl.constexpr, SPAN: tl.constexpr,
    TC: tl.constexpr, TD: tl.constexpr, BE: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    NORM: tl.constexpr, CLIP: tl.constexpr, RAGGED: tl.constexpr, ANCHOR: tl.constexpr,
    RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes `chunks` chunks. SPAN: chunks between two state slots (1 keeps every chunk's start)."""
    row = tl.program_id(0).to(tl.int64)
    acc = down_ptr.dtype.element_ty
    SIZE: tl.constexpr = D * E
    IN_BLOCK: tl.constexpr = R // C
    blocks = chunks // IN_BLOCK
    scale = tl.zeros([1, TD], acc)
    shift = tl.zeros([1, TD], acc)
    if NORM:
        scale += vector(scale_ptr + (row % H) * D, D, TD)[None, :]
        shift += vector(shift_ptr + (row % H) * D, D, TD)[None, :]
    # gates shared by the layers: both read layer 0
    last_layer = gate_layers - 1
    if RESIDENT:
        m_down = tile(down_ptr + row * 2 * SIZE, 0, 0, E, D, BE, TD)
        s_down = tile(down_ptr + row * 2 * SIZE + SIZE, 0, 0, E, D, BE, TD)
        if DEPTH == 2:
            m_up = tile(up_ptr + row * 2 * SIZE, 0, 0, D, E, TD, BE)
            s_up = tile(up_ptr + row * 2 * SIZE + SIZE, 0, 0, D, E, TD, BE)
    for i in range(chunks):
        block = i // IN_BLOCK
        place = block * rows + row
        at = place * R + (i % IN_BLOCK) * C
        source = ((i + SPAN - 1) // SPAN * rows + row) * 2 * SIZE
        target = ((i // SPAN + 1) * rows + row) * 2 * SIZE
        goes_on = False
        if RAGGED:
            if i % IN_BLOCK == 0:
                if tl.load(fresh_ptr + place) != 0:
                    if RESIDENT:
                        m_down = tile(down_initial + row * 2 * SIZE, 0, 0, E, D, BE, TD)
                        s_down = tile(down_initial + row * 2 * SIZE + SIZE, 0, 0, E, D, BE, TD)
                        put(down_ptr + source, m_down, 0, 0, E, D)
                        put(down_ptr + source + SIZE, s_down, 0, 0, E, D)
                        if DEPTH == 2:
                            m_up = tile(up_initial + row * 2 * SIZE, 0, 0, D, E, TD, BE)
                            s_up = tile(up_initial + row * 2 * SIZE + SIZE, 0, 0, D, E, TD, BE)
                            put(up_ptr + source, m_up, 0, 0, D, E)
                            put(up_ptr + source + SIZE, s_up, 0, 0, D, E)
                    else:
                        copy_state(down_initial + row * 2 * SIZE, down_ptr + source, 2 * E, D, TD)
                        if DEPTH == 2:
                            for e in range(0, E, BE):
                                part = tile(up_initial + row * 2 * SIZE, 0, e, 2 * D, E, 2 * TD, BE)
                                put(up_ptr + source, part, 0, e, 2 * D, E)
                        tl.debug_barrier()
            if ANCHOR:
                goes_on = (i + first_chunk == 0) & (tl.load(goes_on_ptr + row) != 0)
        k = tile(k_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
        v = tile(v_ptr + at * D, 0, 0, C, D, TC, TD).to(acc)
        down_weights = down_ptr + source
        up_weights = up_ptr + source
        if ANCHOR:
            if goes_on:
                down_weights = down_anchor + row * SIZE
                up_weights = up_anchor + row * SIZE

        # keys forward
        z = tl.zeros([TC, TD], acc)
        for e in range(0, E, BE):
            if RESIDENT:
                w_down = m_down
                if DEPTH == 2:
                    w_up = m_up
                if ANCHOR:
                    if goes_on:
                        w_down = tile(down_weights, 0, 0, E, D, BE, TD)
                        if DEPTH == 2:
                            w_up = tile(up_weights, 0, 0, D, E, TD, BE)
            else:
                w_down = tile(down_weights, e, 0, E, D, BE, TD)
                if DEPTH == 2:
                    w_up = tile(up_weights, 0, e, D, E, TD, BE)
            if DEPTH == 2:
                hidden = product(k, w_up, PRECISION)
                put(hidden_ptr + at * E, hidden, 0, e, C, E)
                z += product(gelu(hidden), w_down, PRECISION)
            else:
                z += product(k, w_down, PRECISION)
        error = loss_error(k, v, z, scale, shift, D, RESIDUAL, NORM)
        d = loss_slope(error, z, scale, clip, D, NORM, CLIP)
        put(z_ptr + at * D, z, 0, 0, C, D)
        put(d_ptr + at * D, d, 0, 0, C, D)
        put_vector(loss_ptr + at, tl.sum(error * error, 1), C)
        if DEPTH == 2:
            tl.debug_barrier()  # z_1 was stored in another layout

        # Eqs. 13 and 14 over the chunk
        layer_place = (last_layer * blocks + block) * rows + row
        ends = ends_ptr + (layer_place * IN_BLOCK + i % IN_BLOCK) * 3
        down_start, down_lag, down_end = tl.load(ends), tl.load(ends + 1), tl.load(ends + 2)
        mixes = mixes_ptr + layer_place * R + (i % IN_BLOCK) * C
        layers_apart = blocks * rows * R * gate_layers
        down_now, down_later = vector(mixes, C, TC)[:, None], vector(mixes + layers_apart, C, TC)[:, None]
        if DEPTH == 2:
            ends = ends_ptr + (place * IN_BLOCK + i % IN_BLOCK) * 3
            up_start, up_lag, up_end = tl.load(ends), tl.load(ends + 1), tl.load(ends + 2)
            mixes = mixes_ptr + at
            k_now = tl.trans(k * vector(mixes, C, TC)[:, None])
            k_later = tl.trans(k * vector(mixes + layers_apart, C, TC)[:, None])
        here = False
        if RAGGED:
            here = (tl.load(last_ptr + row) == i + first_chunk) & (goes_on == 0)
        for e in range(0, E, BE):
            if not RESIDENT:
                m_down = tile(down_ptr + source, e, 0, E, D, BE, TD)
                s_down = tile(down_ptr + source + SIZE, e, 0, E, D, BE, TD)
            if RAGGED:
                if here:
                    put(down_running + row * SIZE, m_down, e, 0, E, D)
            if DEPTH == 2:
                w_down = m_down
                if ANCHOR:
                    if goes_on:
                        w_down = tile(down_weights, e, 0, E, D, BE, TD)
                hidden = tile(hidden_ptr + at * E, 0, e, C, E, TC, BE)
                a = gelu(hidden)
                slope = product(d, tl.trans(w_down), PRECISION) * gelu_slope(hidden)
                put(slope_ptr + at * E, slope, 0, e, C, E)
                if not RESIDENT:
                    m_up = tile(up_ptr + source, 0, e, D, E, TD, BE)
                    s_up = tile(up_ptr + source + SIZE, 0, e, D, E, TD, BE)
                if RAGGED:
                    if here:
                        put(up_running + row * SIZE, m_up, 0, e, D, E)
                m_up = up_start * m_up + up_lag * s_up - product(k_now, slope, PRECISION)
                s_up = up_end * s_up - product(k_later, slope, PRECISION)
                if (not RESIDENT) or SPAN == 1:
                    put(up_ptr + target, m_up, 0, e, D, E)
                    put(up_ptr + target + SIZE, s_up, 0, e, D, E)
            else:
                a = k
            m_down = down_start * m_down + down_lag * s_down - product(tl.trans(a * down_now), d, PRECISION)
            s_down = down_end * s_down - product(tl.trans(a * down_later), d, PRECISION)
            if (not RESIDENT) or SPAN == 1:
                put(down_ptr + target, m_down, e, 0, E, D)
                put(down_ptr + target + SIZE, s_down, e, 0, E, D)
        if RESIDENT and SPAN > 1:
            if (i + 1) % SPAN == 0:
                put(down_ptr + target, m_down, 0, 0, E, D)
                put(down_ptr + target + SIZE, s_down, 0, 0, E, D)
                if DEPTH == 2:
                    put(up_ptr + target, m_up, 0, 0, D, E)
                    put(up_ptr + target + SIZE, s_up, 0, 0, D, E)
        if not RESIDENT:
            tl.debug_barrier()  # the next chunk loads what this one stored
