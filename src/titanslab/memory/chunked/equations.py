"""One chunk of the exact parallel form: write, read, and the backward of both, by hand.

Rows are the C tokens of a chunk, `N = batch * heads` (times chunks, for reads) is the batch of every matrix product.
A layer's state is one tensor `[N, 2 d_in, d_out]`: the weights M above the momentum S. Gradients are checked
against the token loop, not derived from another fast path.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titanslab.memory.gradient import (
    gelu_curve,
    gelu_slope,
    normalize,
    normalize_backward,
    normalize_double_backward,
    outer_slopes,
    output_error,
)


class Form(NamedTuple):
    """The settings of the memory network that are constants of a compiled function."""

    depth: int
    residual: bool
    grad_clip: float | None


class Chunk(NamedTuple):
    """What one chunk is written from. Lists hold one tensor per layer of the memory.

    k, v: `[N, C, D]`. state: `[N, 2 d_in, d_out]` at the chunk's start. anchor: `[N, d_in, d_out]`, the weights at
    which the inner gradients are taken. ends: `[N, 3]`, the decays start, lag and momentum_end over the whole chunk.
    mixes: `[N, C, 2]`, the shares of each write that M and S hold at the chunk's end. scale, shift: `[N, 1, D]` of the
    LayerNorm, or None.
    """

    k: Tensor
    v: Tensor
    state: list[Tensor]
    anchor: list[Tensor]
    ends: list[Tensor]
    mixes: list[Tensor]
    scale: Tensor | None
    shift: Tensor | None


class Write(NamedTuple):
    """The writes of one chunk: layer inputs a_1.. (a_0 is k), gradients d_1.., and the inner loss `[N, C]`."""

    inputs: list[Tensor]
    slopes: list[Tensor]
    loss: Tensor


class Reads(NamedTuple):
    """What the reads of many chunks are made from. Lists hold one tensor per layer of the memory.

    q: `[N, C, D]`. inputs: a_0.. of the writes, keys first. slopes: d_1.. of the writes. state: at each chunk's start.
    start, lag: `[N, C]` and mix: `[N, C, C]`, decays up to each token. scale, shift: as in `Chunk`.
    base: `[n, d_in, d_out]`, the weights to which the memory forgets, of the n rows of a chunk; or empty for 0.
    """

    q: Tensor
    inputs: list[Tensor]
    slopes: list[Tensor]
    state: list[Tensor]
    start: list[Tensor]
    lag: list[Tensor]
    mix: list[Tensor]
    scale: Tensor | None
    shift: Tensor | None
    base: Sequence[Tensor] = ()


def _gradient(chunk: Chunk, form: Form) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """`outer_slopes` of a chunk at its anchor weights."""
    norm = (chunk.scale, chunk.shift)
    return outer_slopes(chunk.k, chunk.v, chunk.anchor, norm, form.residual, form.grad_clip)


def advance(chunk: Chunk, write: Write, out: list[Tensor]) -> None:
    """Put the state after the chunk's writes into `out`."""
    inputs = [chunk.k, *write.inputs]
    for layer, (a, d) in enumerate(zip(inputs, write.slopes, strict=True)):
        width = a.shape[2]
        m, s = chunk.state[layer][:, :width], chunk.state[layer][:, width:]
        b, f, e = (x[:, None, None] for x in chunk.ends[layer].unbind(1))
        torch.mul(m, b, out=out[layer][:, :width]).addcmul_(s, f)
        torch.mul(s, e, out=out[layer][:, width:])
        writes = (chunk.mixes[layer][:, :, :, None] * a[:, :, None]).flatten(2)
        out[layer].baddbmm_(writes.transpose(1, 2), d, alpha=-1)


def write_chunk(chunk: Chunk, out: list[Tensor], form: Form) -> Write:
    """Write one chunk; the new state goes into `out`."""
    inputs, slopes, _, loss = _gradient(chunk, form)
    write = Write(inputs[1:], slopes, loss)
    advance(chunk, write, out)
    return write


def read_chunks(given: Reads, form: Form) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """f(q_t; M_t) for the tokens of many chunks at once, with the layer inputs and products of the read."""
    q, inputs, slopes, state, start, lag, mix, scale, shift, base = given
    reads, products, x = [], [], q
    for layer in range(form.depth):
        reads.append(x)
        both = torch.cat([start[layer][:, :, None] * x, lag[layer][:, :, None] * x], 2)
        score = torch.bmm(x, inputs[layer].transpose(1, 2)) * mix[layer]
        z = torch.baddbmm(torch.bmm(both, state[layer]), score, slopes[layer], alpha=-1)
        if base:
            z = z + _times(x, base[layer])
        products.append(z)
        if layer < form.depth - 1:
            x = F.gelu(z)
    z = products[-1]
    if scale is not None and shift is not None:
        z = normalize(z)[0] * scale + shift
    return (q + z if form.residual else z), reads, products


def _by_row(x: Tensor, like: Tensor) -> Tensor:
    """`x [chunks * n, ...]` as `[chunks, n, ...]`, where n is the number of rows of `like`."""
    return x.view(-1, like.shape[0], *x.shape[1:])


def _times(x: Tensor, base: Tensor) -> Tensor:
    """`x [chunks * n, C, d_in]` times the weights `base [n, d_in, d_out]` of its rows."""
    return torch.matmul(_by_row(x, base), base).flatten(0, 1)


class ReadGradient(NamedTuple):
    q: Tensor
    inputs: list[Tensor]
    slopes: list[Tensor]
    products: list[Tensor]
    start: list[Tensor]
    lag: list[Tensor]
    mix: list[Tensor]
    scale: Tensor | None
    shift: Tensor | None
    base: list[Tensor]


def read_chunks_backward(dy: Tensor, given: Reads, form: Form) -> tuple[ReadGradient, list[Tensor]]:
    """Backward of `read_chunks`, all but the state's gradient; also the read's layer inputs, for that."""
    _, inputs, slopes, state, start, lag, mix, scale, shift, base = given
    _, reads, products = read_chunks(given, form)
    d_scale = d_shift = None
    dz = dy
    if scale is not None and shift is not None:
        unit, rstd = normalize(products[-1])
        d_scale, d_shift = dy * unit, dy
        dz = normalize_backward(dy * scale, unit, rstd)
    grads: list[list[Tensor]] = [[], [], [], [], [], []]
    d_base: list[Tensor] = []
    for layer in range(form.depth - 1, -1, -1):
        x, a, d = reads[layer], inputs[layer], slopes[layer]
        width = x.shape[2]
        raw = torch.bmm(x, a.transpose(1, 2))
        d_mixed = torch.bmm(dz, d.transpose(1, 2))  # minus the gradient of score
        d_raw = d_mixed * mix[layer]
        through = torch.bmm(dz, state[layer].transpose(1, 2))
        d_start, d_lag = through[:, :, :width], through[:, :, width:]
        dx = start[layer][:, :, None] * d_start + lag[layer][:, :, None] * d_lag
        dx = torch.baddbmm(dx, d_raw, a, alpha=-1)
        if base:
            dx = dx + _times(dz, base[layer].transpose(1, 2))
            d_base.insert(0, torch.matmul(_by_row(x, base[layer]).mT, _by_row(dz, base[layer])).sum(0))
        values = (
            -torch.bmm(d_raw.transpose(1, 2), x),
            -torch.bmm((raw * mix[layer]).transpose(1, 2), dz),
            dz,
            (x * d_start).sum(2),
            (x * d_lag).sum(2),
            -(d_mixed * raw),
        )
        for into, value in zip(grads, values, strict=True):
            into.insert(0, value)
        if layer > 0:
            dz = dx * gelu_slope(products[layer - 1])
    dq = dx + dy if form.residual else dx
    found = ReadGradient(dq, grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], d_scale, d_shift, d_base)
    return found, reads


class ReadShare(NamedTuple):
    """What the reads of one chunk add to the gradient of its write. Lists hold one tensor per layer of the memory.

    inputs, slopes: gradients of a_0.. and d_1... reads, products: the reads' layer inputs and the gradients at their
    products z_l. start, lag: as in `Reads`.
    """

    inputs: list[Tensor]
    slopes: list[Tensor]
    reads: list[Tensor]
    products: list[Tensor]
    start: list[Tensor]
    lag: list[Tensor]


def write_chunk_backward(chunk: Chunk, d_state: list[Tensor], share: ReadShare, form: Form) -> Chunk:
    """Backward of one chunk's write, and the gradient of its reads in the state; `d_state` is at the chunk's end.

    Returns the gradients of the fields of `chunk`; those of scale and shift are by token, `[N, C, D]`.
    """
    k, v, state, anchor, ends, mixes, scale, shift = chunk
    d_inputs, d_slopes, reads, d_products, start, lag = share
    inputs, slopes, products, _ = _gradient(chunk, form)
    depth, rows = form.depth, k.shape[0]
    da, dd, d_ends, d_mixes, d_before = list(d_inputs), list(d_slopes), [], [], []
    for layer in range(depth):
        a, d, mixed = inputs[layer], slopes[layer], mixes[layer]
        width = a.shape[2]
        m, s = state[layer][:, :width], state[layer][:, width:]
        dm, ds = d_state[layer][:, :width], d_state[layer][:, width:]
        b, f, e = (x[:, None, None] for x in ends[layer].unbind(1))
        d_ends.append(torch.stack([(m * dm).sum((1, 2)), (s * dm).sum((1, 2)), (s * ds).sum((1, 2))], 1))
        # writes = [w a | w' a]^T d, taken from the state
        d_writes = torch.bmm(d, d_state[layer].transpose(1, 2)).view(rows, -1, 2, width)
        da[layer] = da[layer] - (d_writes * mixed[:, :, :, None]).sum(2)
        d_mixes.append(-(d_writes * a[:, :, None]).sum(3))
        both = (mixed[:, :, :, None] * a[:, :, None]).flatten(2)
        dd[layer] = torch.baddbmm(dd[layer], both, d_state[layer], alpha=-1)
        x, dz = reads[layer], d_products[layer]
        seen = torch.cat([start[layer][:, :, None] * x, lag[layer][:, :, None] * x], 2)
        carried = torch.cat([b * dm, f * dm + e * ds], 1)
        d_before.append(torch.baddbmm(carried, seen.transpose(1, 2), dz))
    # through d_l = (d_{l+1} W_{l+1}^T) gelu'(z_l), from the first layer to the last
    dz_extra: list[Tensor] = []
    left: list[list[Tensor]] = [[] for _ in range(depth)]
    right: list[list[Tensor]] = [[] for _ in range(depth)]
    for layer in range(depth - 1):
        back = torch.bmm(slopes[layer + 1], anchor[layer + 1].transpose(1, 2))
        d_back = dd[layer] * gelu_slope(products[layer])
        dz_extra.append(dd[layer] * back * gelu_curve(products[layer]))
        dd[layer + 1] = torch.baddbmm(dd[layer + 1], d_back, anchor[layer + 1])
        left[layer + 1].append(d_back)
        right[layer + 1].append(slopes[layer + 1])
    # through the gradient of the loss at z_L
    d_last, d_scale, d_shift = dd[-1], None, None
    error, unit, rstd = output_error(k, v, products[-1], scale, shift, form.residual)
    if form.grad_clip is not None:
        full = normalize_backward(2 * error * scale, unit, rstd) if scale is not None else 2 * error
        inverse = torch.rsqrt(full.square().sum(-1, keepdim=True).clamp_min(1e-38))
        factor, direction = form.grad_clip * inverse, full * inverse
        along = (direction * d_last).sum(-1, keepdim=True)
        d_last = torch.where(factor < 1, factor * (d_last - direction * along), d_last)
    if scale is not None and shift is not None:
        d_grad = normalize_backward(d_last, unit, rstd)
        d_error = 2 * d_grad * scale
        dz = normalize_double_backward(d_last, 2 * error * scale, unit, rstd)
        dz = dz + normalize_backward(d_error * scale, unit, rstd)
        d_scale, d_shift = d_grad * 2 * error + d_error * unit, d_error
    else:
        d_error = 2 * d_last
        dz = d_error
    # through the forward pass of the keys
    for layer in range(depth - 1, -1, -1):
        left[layer].append(inputs[layer])
        right[layer].append(dz)
        da[layer] = torch.baddbmm(da[layer], dz, anchor[layer].transpose(1, 2))
        if layer > 0:
            dz = da[layer] * gelu_slope(products[layer - 1]) + dz_extra[layer - 1]
    d_anchor = [torch.bmm(torch.cat(p, 1).transpose(1, 2), torch.cat(r, 1)) for p, r in zip(left, right, strict=True)]
    dk = da[0] + d_error if form.residual else da[0]
    return Chunk(dk, -d_error, d_before, d_anchor, d_ends, d_mixes, d_scale, d_shift)


class Functions(NamedTuple):
    """The functions that the chunk loop calls: those above, or compiled forms of them."""

    write_chunk: Callable[..., Write] = write_chunk
    read_chunks: Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]] = read_chunks
    read_chunks_backward: Callable[..., tuple[ReadGradient, list[Tensor]]] = read_chunks_backward
    write_chunk_backward: Callable[..., Chunk] = write_chunk_backward


AS_WRITTEN = Functions()
