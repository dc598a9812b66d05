"""MAC's walk over whole segments as one node of autograd, for training on a CPU.

The loop of `mac.py` consists of many small operations a segment, and autograd records each of them. Here the loop runs
inside one node: a segment takes three products, four steps of a compiled kernel (`memory/cpu/source/segment.cpp`) and
one call of the chunk loop. Backward goes from the last segment to the first, with the gradient of the state in one
buffer. It computes cheap activations again, and makes the gradients of the weights of `RING` segments at once.
"""

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs
from titanslab.memory.chunked.op import end_state, is_aligned, placed, stack
from titanslab.memory.cpu import chunked as loop
from titanslab.memory.cpu.build import LAYERS, MAX_LAYERS, load
from titanslab.memory.cpu.features import features, features_backward
from titanslab.memory.layer import NORM_EPS
from titanslab.memory.layer_cpu import join
from titanslab.memory.state import MemoryState, NeuralMemoryState
from titanslab.models.call import Call

if TYPE_CHECKING:
    from titanslab.models.mac import MemoryAsContext

# segments whose gradients of the weights are one product
RING = 8
# the steps of a segment in segment.cpp
READ, NORM, ATTEND, FEATURES, FEATURES_BACKWARD, Y_BACKWARD, ATTEND_BACKWARD, NORM_BACKWARD, READ_BACKWARD = range(9)

_SIZES = ("batch", "segments", "tokens", "heads", "head_dim", "hidden", "depth", "residual", "attention_heads", "width")
_INTS = (*_SIZES, "prefix", "columns", "gate_layers", "momentum", "forgetting", "taps", "ring", "threads")
_SEQUENCES = ("x", "first", "query", "d_first", "d_query", "cos", "sin", "prefix_k", "prefix_v")
_PARAMETERS = ("o_norm", "scale", "shift", "h_norm", "y_norm", "bias", "limits", "conv")
_D_PARAMETERS = ("d_prefix_k", "d_prefix_v", "d_o_norm", "d_norm", "d_h_norm", "d_y_norm", "d_conv")
_HELD = ("u", "h0", "h", "kv", "lse", "y", "normed", "raw", "gates", "tails", "q", "k", "v")
_GRADIENTS = ("dq", "dk", "dv", "d_gates", "d_tails", "d_raw", "d_normed", "dy", "d_kv", "dh", "dh0", "du")


class SegmentArguments(loop.Pointers):
    """Mirrors `struct SegmentArguments` in segment.cpp, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTS),
        *((name, ctypes.c_double) for name in ("read_eps", "eps", "write_scale")),
        *((name, ctypes.c_void_p) for name in (*_SEQUENCES, *_PARAMETERS, *_D_PARAMETERS)),
        *((name, LAYERS) for name in ("state", "d_state")),
        ("state_stride", ctypes.c_int64 * MAX_LAYERS),
        *((name, ctypes.c_void_p) for name in (*_HELD, *_GRADIENTS)),
    )


class Settings(NamedTuple):
    """What a walk needs beside tensors. tokens: of a segment. Others as in the layer, the mixer and the call."""

    tokens: int
    heads: int
    attention_heads: int
    chunk_size: int
    residual: bool
    grad_clip: float | None
    momentum: bool
    forgetting: bool
    epsilons: tuple[float, float]
    write_scale: float


class Given(NamedTuple):
    """The tensors of a walk, before its states.

    x: `[B, S * L, hidden]`, S segments of L tokens. cos, sin: `[L, d / 2]`. limits: those of theta. first: the
    projections of x as one weight, to the memory's query and gate, then to q, k, v of attention. write: those of what is
    written, as `layer_cpu.join` returns them. conv: `[3, taps, H * D]` of q, k, v. prefix_k, prefix_v: `[B, A, N, d]`,
    persistent tokens. read_tail, tails: `[B, taps - 1, H * D]` of the read, `[3, B, taps - 1, H * D]` of q, k, v.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    limits: Tensor
    first: Tensor
    write: Tensor
    o_proj: Tensor
    bias: Tensor
    conv: Tensor
    o_norm: Tensor
    h_norm: Tensor
    y_norm: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
    read_tail: Tensor
    tails: Tensor
    scale: Tensor | None
    shift: Tensor | None

    @property
    def norm(self) -> list[Tensor]:
        return [] if self.scale is None or self.shift is None else [self.scale, self.shift]


FIELDS = len(Given._fields)


def takes_walk(mixer: "MemoryAsContext", x: Tensor, call: Call, memory: MemoryState, count: int) -> bool:
    """Whether the node runs on `count` whole segments of `x`: where the memory's own training pass runs, and plainly.

    Each segment is whole chunks, and each row starts at a boundary. Stats need the loop.
    """
    layer, attention, length = mixer.memory, mixer.attention, mixer.segment_len
    if count < 1 or not call.learn or call.stats is not None or layer.theta_key_proj is not None:
        return False
    others = [mixer.h_norm.weight, mixer.y_norm.weight, *memory.weights, *memory.momentum]
    if not layer.takes_pass(x[:, :length], [attention.q_proj, attention.k_proj, attention.v_proj], others):
        return False
    return is_aligned(length, loop.block_size(layer.chunk_size), memory.offset, None, None)


def walk(
    mixer: "MemoryAsContext", x: Tensor, call: Call, state: NeuralMemoryState, prefix: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, NeuralMemoryState]:
    """The loop of `MemoryAsContext.forward` over whole segments `x [B, S * segment_len, hidden]`.

    `state` is the memory before them, `prefix` the keys and values of the persistent tokens.

    Returns:
        y and y normalised `[B, T, hidden]`, the reads `[B, T, H, D]`, and the memory after them.
    """
    layer, attention, (batch, total) = mixer.memory, mixer.attention, x.shape[:2]
    assert call.rotary is not None
    cos, sin = (table[0, : mixer.segment_len] for table in call.rotary)
    gates, names = layer.gate_projections(), ("q", "k", "v")
    first = (layer.q_proj, layer.g_proj, attention.q_proj, attention.k_proj, attention.v_proj)
    tails = {n: t.to(x.dtype).expand(batch, -1, -1) for n, t in state.conv.items()}
    given = Given(
        x, cos, sin, layer.limits(x), torch.cat([p.weight for p in first]),
        join([*(getattr(layer, f"{n}_proj").weight for n in names), *(p.weight for p in gates)]),
        layer.o_proj.weight, torch.cat([p.bias for p in gates]),
        torch.stack([getattr(layer, f"{n}_conv1d").weight for n in names]),
        layer.o_norm, mixer.h_norm.weight, mixer.y_norm.weight, *prefix,
        tails["read"], torch.stack([tails[n] for n in names]), layer.memory_norm_weight, layer.memory_norm_bias,
    )
    settings = Settings(
        mixer.segment_len, layer.num_heads, attention.num_heads, layer.chunk_size, layer.network.residual,
        layer.network.grad_clip, layer.eta_proj is not None, layer.alpha_proj is not None,
        (NORM_EPS, mixer.h_norm.eps), call.write_scale,
    )
    y, normed, reads, read, tails, *end = _Walk.apply(settings, *given, *stack(state.memory, batch))
    memory = end_state(end, [], torch.zeros_like(state.memory.offset), layer.num_heads)
    conv = {**dict(zip(names, tails.unbind(0))), "read": read}
    return y, normed, reads.unflatten(-1, (layer.num_heads, -1)), NeuralMemoryState(memory, conv)


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, *tensors: Any) -> Any:
        given, state = Given(*tensors[:FIELDS]), list(tensors[FIELDS:])
        x, (batch, total, width) = given.x, given.x.shape
        length, inner, kv_proj = settings.tokens, given.o_proj.shape[1], given.first[-2 * width :]
        count, rows = total // length, batch * length
        first = (x.flatten(0, 1) @ given.first.t()).view(batch, total, -1)
        (query,) = features([first[..., :inner]], [given.conv[0]], [given.read_tail], settings.heads, 1)
        h0, y, normed = (x.new_empty(count, rows, width) for _ in range(3))
        raw, reads = (x.new_empty(count, rows, columns) for columns in (given.write.shape[0], inner))
        gates = x.new_empty(count, 3, given.limits.shape[0], batch, length, settings.heads)
        lse, tails = x.new_empty(count, batch, settings.attention_heads, length), x.new_empty(count + 1, *given.tails.shape)
        tails[0] = given.tails
        u, h, kv = (x.new_empty(rows, columns) for columns in (inner, width, 2 * width))
        chunks, inputs = _chunks(settings, given, state, gates)
        kept = [x.new_empty(count, -(-chunks.chunks // chunks.group), *s.shape) for s in state]
        for part, s in zip(kept, state, strict=True):
            part[0, 0] = s
        end = [torch.empty_like(s) for s in state]
        shape = loop.kept_activations(inputs.q, state, settings.chunk_size, count * chunks.chunks, settings.grad_clip)
        activations = None if shape is None else x.new_empty(shape).unflatten(0, (count, -1))
        chunks.give(loss=x.new_empty(rows, settings.heads), activation_reals=0 if shape is None else shape[2])
        segment = _arguments(settings, given, inputs, kept, 1)
        segment.give(first=first, query=query, u=u, h0=h0, h=h, kv=kv, lse=lse, y=y, normed=normed, raw=raw)
        segment.give(gates=gates, tails=tails)
        for n in range(count):
            _step(segment, x.dtype, READ, n)
            torch.mm(u, given.o_proj.t(), out=h0[n])
            _step(segment, x.dtype, NORM, n)
            torch.mm(h, kv_proj.t(), out=kv)
            _step(segment, x.dtype, ATTEND, n)
            torch.mm(normed[n], given.write.t(), out=raw[n])
            _step(segment, x.dtype, FEATURES, n)
            _move(chunks, n, gates=gates, y=reads, state=kept, kept=kept, activations=activations)
            _move(chunks, n + 1, end=kept) if n + 1 < count else chunks.give(end=end)
            loop.run(chunks, x.dtype, backward=False)
        ctx.settings, ctx.depth = settings, len(state)
        large = () if activations is None else (activations,)
        ctx.save_for_backward(*tensors, first, query, h0, y, normed, raw, lse, gates, tails, *kept, *large)
        out = (t.view(count, batch, length, -1).transpose(0, 1).flatten(1, 2) for t in (y, normed, reads))
        return *out, first[:, total - tails.shape[3] :, :inner].clone(), tails[count].clone(), *end

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_out: Tensor) -> Any:
        settings, saved, last = ctx.settings, ctx.saved_tensors, FIELDS + ctx.depth
        given, state, held = Given(*saved[:FIELDS]), list(saved[FIELDS:last]), saved[last:]
        (first, query, h0, y, normed, raw, lse, gates, tails), kept = held[:9], list(held[9 : 9 + ctx.depth])
        activations = held[9 + ctx.depth] if len(held) > 9 + ctx.depth else None
        x, (batch, total, width) = given.x, given.x.shape
        length, inner, kv_proj = settings.tokens, given.o_proj.shape[1], given.first[-2 * width :]
        count, rows = total // length, batch * length
        outer = (d.view(batch, count, length, -1).transpose(0, 1).reshape(count, rows, -1) for d in d_out[:3])
        d_y, d_normed, d_reads = outer
        d_read_tail, d_tails, d_state = d_out[3], d_out[4].clone(), [d.clone() for d in d_out[5:]]
        ring = min(RING, count)
        d_first, d_query, dy = torch.empty_like(first), torch.empty_like(query), d_y.clone()
        d_raw, u, h, dh0 = (x.new_empty(ring, rows, columns) for columns in (raw.shape[2], inner, width, width))
        kv, d_kv = x.new_empty(rows, 2 * width), x.new_empty(ring, rows, 2 * width)
        into, dh, du = (x.new_empty(rows, columns) for columns in (width, width, inner))
        chunks, inputs = _chunks(settings, given, state, gates)
        dq, dk, dv = torch.empty((3, *inputs.q.shape), dtype=x.dtype)
        d_gates = torch.empty_like(gates[0])
        chunks.give(dq=dq, dk=dk, dv=dv, d_gates=d_gates, d_end=d_state, d_state=d_state)
        chunks.give(activation_reals=0 if activations is None else activations.shape[3])
        head = inputs.q.shape[2:]
        d_norms = x.new_zeros(count, batch * head[0], 2, head[1])
        segment = _arguments(settings, given, inputs, kept, ring)
        sums = {
            "d_prefix_k": torch.zeros_like(given.prefix_k),
            "d_prefix_v": torch.zeros_like(given.prefix_v),
            "d_o_norm": x.new_zeros(batch, *head),
            "d_norm": x.new_zeros(batch * head[0], 2, head[1]),
            "d_h_norm": x.new_zeros(segment.threads, width),
            "d_y_norm": x.new_zeros(segment.threads, width),
            "d_conv": x.new_zeros(3, batch, *given.conv.shape[1:]),
        }
        segment.give(first=first, query=query, u=u, h0=h0, h=h, kv=kv, lse=lse, y=y, raw=raw, gates=gates, tails=tails)
        segment.give(d_first=d_first, d_query=d_query, d_state=d_state, dq=dq, dk=dk, dv=dv, d_gates=d_gates)
        segment.give(d_tails=d_tails, d_raw=d_raw, d_normed=into, dy=dy, d_kv=d_kv, dh=dh, dh0=dh0, du=du, **sums)
        d_kv_proj, d_write, d_o_proj = (torch.zeros_like(w) for w in (kv_proj, given.write, given.o_proj))
        d_bias = torch.zeros_like(given.bias)
        for n in reversed(range(count)):
            at = n % ring
            _step(segment, x.dtype, FEATURES, n)
            _move(chunks, n, gates=gates, kept=kept, activations=activations, dy=d_reads)
            if given.norm:
                _move(chunks, n, d_norm=d_norms)
            loop.run(chunks, x.dtype, backward=True)
            _step(segment, x.dtype, FEATURES_BACKWARD, n)
            torch.addmm(d_normed[n], d_raw[at], given.write, out=into)
            _step(segment, x.dtype, Y_BACKWARD, n)
            _step(segment, x.dtype, NORM, n)
            torch.mm(h[at], kv_proj.t(), out=kv)
            _step(segment, x.dtype, ATTEND_BACKWARD, n)
            torch.mm(d_kv[at], kv_proj, out=dh)
            _step(segment, x.dtype, NORM_BACKWARD, n)
            torch.mm(dh0[at], given.o_proj, out=du)
            _step(segment, x.dtype, READ_BACKWARD, n)
            if at == 0:
                some = min(ring, count - n)
                for into_weight, d, a in ((d_kv_proj, d_kv, h), (d_write, d_raw, normed[n:]), (d_o_proj, dh0, u)):
                    into_weight.addmm_(d[:some].flatten(0, 1).t(), a[:some].flatten(0, 1))
                d_bias += d_raw[:some, :, 3 * inner : 3 * inner + d_bias.shape[0]].sum((0, 1))
        d_query_grads = features_backward(
            [d_query], [first[..., :inner]], [given.conv[0]], [given.read_tail], settings.heads, 1, [d_first[..., :inner]]
        )
        _, d_read_conv, d_before = d_query_grads
        d_first[:, total - tails.shape[3] :, :inner] += d_read_tail
        flat = d_first.flatten(0, 1)
        dx = (flat @ given.first).view_as(x)
        dx += dy.view(count, batch, length, width).transpose(0, 1).flatten(1, 2)
        d_weight = flat.t() @ x.flatten(0, 1)
        d_weight[-2 * width :] += d_kv_proj
        d_conv = sums["d_conv"].sum(1)
        d_conv[0] += d_read_conv
        d_scale = d_shift = None
        if given.norm:
            d_norm = (sums["d_norm"] + d_norms.sum(0)).view(batch, *head[:1], 2, head[1]).sum(0)
            d_scale, d_shift = d_norm.unbind(1)
        grads = Given(
            dx, None, None, None, d_weight, d_write, d_o_proj, d_bias, d_conv,
            *(sums[n].sum(0) for n in ("d_o_norm", "d_h_norm", "d_y_norm")), sums["d_prefix_k"], sums["d_prefix_v"],
            d_before, d_tails, d_scale, d_shift,
        )
        return None, *grads, *d_state


def _chunks(
    settings: Settings, given: Given, state: list[Tensor], gates: Tensor
) -> tuple[loop.Arguments, Inputs]:
    """The arguments of the chunk loop for any one segment, whose pointers `_move` sets; and its inputs."""
    _, _, layers, batch, length, heads = gates.shape
    q, k, v = gates.new_empty(3, batch, length, heads, given.o_proj.shape[1] // heads)
    rest = (None, settings.chunk_size, 0, settings.residual, settings.grad_clip)
    inputs = placed(Inputs(q, k, v, gates[0], [], state, given.norm, *rest), "cpu", None, None, None)
    return loop.prepare(inputs)[0], inputs


def _arguments(settings: Settings, given: Given, inputs: Inputs, kept: list[Tensor], ring: int) -> SegmentArguments:
    """The arguments of the steps that forward and backward share."""
    (batch, total, width), (_, length, heads, head_dim) = given.x.shape, inputs.q.shape
    hidden = inputs.initial[0].shape[2] if len(inputs.initial) > 1 else 0
    sizes = (batch, total // length, length, heads, head_dim, hidden, len(inputs.initial), settings.residual)
    more = (settings.attention_heads, width, given.prefix_k.shape[2], given.write.shape[0], given.limits.shape[0])
    segment = SegmentArguments(*sizes, *more, settings.momentum, settings.forgetting, given.conv.shape[1], ring)
    segment.give(threads=torch.get_num_threads(), read_eps=settings.epsilons[0], eps=settings.epsilons[1])
    segment.give(write_scale=settings.write_scale, q=inputs.q, k=inputs.k, v=inputs.v, state=kept)
    names = ("x", "cos", "sin", "prefix_k", "prefix_v", *_PARAMETERS)
    segment.give(**{name: getattr(given, name) for name in names})
    segment.state_stride = type(segment.state_stride)(*(k.stride(0) for k in kept))
    return segment


def _step(segment: SegmentArguments, dtype: torch.dtype, step: int, n: int) -> None:
    """Run one step of segment n."""
    if load(dtype, "segment").handle.titans_segment(ctypes.byref(segment), step, n):  # type: ignore[union-attr]
        raise MemoryError("the CPU kernel of a segment could not allocate its workspace")


def _move(arguments: loop.Arguments, n: int, **tensors: Tensor | list[Tensor] | None) -> None:
    """Let the pointers of these names point at segment n of the tensors, which have the segments first."""
    for name, value in tensors.items():
        if isinstance(value, list):
            setattr(arguments, name, LAYERS(*(_address(t, n) for t in value)))
        elif value is not None:
            setattr(arguments, name, _address(value, n))


def _address(tensor: Tensor, n: int) -> int:
    return tensor.data_ptr() + n * tensor.stride(0) * tensor.element_size()
