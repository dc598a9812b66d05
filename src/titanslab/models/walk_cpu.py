"""MAC's walk over whole segments as one node of autograd, for training on a CPU.

The loop of `mac.py` consists of many small operations a segment, and autograd records each of them. Here the loop runs
inside one node: a segment takes three products, four steps of a compiled kernel (`memory/cpu/source/segment.cpp`) and
one call of the chunk loop. Backward goes from the last segment to the first, with the gradient of the state in one
buffer. It computes cheap activations again, and makes the gradients of the weights of `RING` segments at once.
"""

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from titanslab.memory.autograd import Inputs, first_order
from titanslab.memory.backends import is_bare
from titanslab.memory.chunked.op import end_state, group_size, is_aligned, stack, state_bytes, to_whole
from titanslab.memory.cpu import chunked as loop
from titanslab.memory.cpu.build import LAYERS, fields, load
from titanslab.memory.cpu.features import features, features_backward
from titanslab.memory.layer import NORM_EPS
from titanslab.memory.layer_cpu import join
from titanslab.memory.norms import RMSNorm
from titanslab.memory.state import MemoryState, NeuralMemoryState
from titanslab.models.call import Call

if TYPE_CHECKING:
    from titanslab.models.mac import MemoryAsContext

# Number of segments whose weight gradients are computed in one product.
RING = 8
# The steps of a segment, as `enum Step` in segment.cpp numbers them.
READ, NORM, ATTEND, FEATURES, FEATURES_BACKWARD, Y_BACKWARD, ATTEND_BACKWARD, NORM_BACKWARD, READ_BACKWARD = range(9)
# The tensors of a walk by the names of `struct SegmentArguments`; the states follow them, then what the memory forgets
# to. `inputs` is the joined weight of the memory's query and gate and of attention's q, k, v; `writes` is that of the
# tokens to write (`layer_cpu.join`).
GIVEN = (
    *("x", "inputs", "writes", "o_proj", "bias", "conv", "o_norm", "h_norm", "y_norm", "prefix_k", "prefix_v"),
    *("read_tail", "first_tails", "scale", "shift", "cos", "sin", "limits"),
)


class SegmentArguments(loop.Pointers):
    """`struct SegmentArguments` of segment.cpp."""

    _fields_ = fields("segment.cpp", "SegmentArguments")

    def step(self, step: int, n: int, dtype: torch.dtype) -> None:
        """Run one step of segment n."""
        if load(dtype, "segment").handle.titans_segment(ctypes.byref(self), step, n):  # type: ignore[union-attr]
            raise MemoryError("the CPU kernel of a segment could not allocate its workspace")


def takes_walk(mixer: "MemoryAsContext", x: Tensor, call: Call, memory: MemoryState, count: int) -> bool:
    """Whether the node runs on `count` whole segments of `x`: where the memory's own training pass does.

    A segment must be whole chunks, and each row must start at a chunk's boundary.
    """
    layer, attention, length = mixer.memory, mixer.attention, mixer.segment_len
    if count < 1 or not call.learn or layer.theta_key_proj is not None:
        return False
    if not (is_bare(mixer.h_norm, RMSNorm) and is_bare(mixer.y_norm, RMSNorm)):
        return False
    others = [mixer.h_norm.weight, mixer.y_norm.weight, *memory.weights, *memory.momentum]
    if not layer.takes_pass(x[:, :length], [attention.q_proj, attention.k_proj, attention.v_proj], others):
        return False
    return is_aligned(length, loop.block_size(layer.chunk_size), memory.offset, None, None)


def walk(
    mixer: "MemoryAsContext", x: Tensor, call: Call, state: NeuralMemoryState, prefix: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, NeuralMemoryState]:
    """The loop of `MemoryAsContext.forward` over whole segments `x [B, T, hidden]`.

    `state` is the memory before them, `prefix` the keys and values `[B, heads, N, d]` of the persistent tokens.

    Returns:
        y and y normalised `[B, T, hidden]`, the reads `[B, T, H, D]`, the inner loss `[B, T, H]`, and the memory after.
    """
    layer, attention, batch, length = mixer.memory, mixer.attention, x.shape[0], mixer.segment_len
    assert call.rotary is not None
    gates, names = layer.gate_projections(), ("q", "k", "v")
    first: tuple[Any, ...] = (layer.q_proj, layer.g_proj, attention.q_proj, attention.k_proj, attention.v_proj)
    tails = {n: t.to(x.dtype).expand(batch, -1, -1) for n, t in state.conv.items()}
    tensors: list[Any] = [
        *(x, torch.cat([p.weight for p in first])),
        join([*(getattr(layer, f"{n}_proj").weight for n in names), *(p.weight for p in gates)]),
        *(layer.o_proj.weight, torch.cat([p.bias for p in gates])),
        torch.stack([getattr(layer, f"{n}_conv1d").weight for n in names]),
        *(layer.o_norm, mixer.h_norm.weight, mixer.y_norm.weight, *prefix),
        *(tails["read"], torch.stack([tails[n] for n in names]), layer.memory_norm_weight, layer.memory_norm_bias),
        *(*(table[0, :length].contiguous() for table in call.rotary), layer.limits(x)),
    ]
    sizes = {
        **{"batch": batch, "segments": x.shape[1] // length, "tokens": length, "heads": layer.num_heads},
        **{"head_dim": layer.head_dim, "hidden": layer.network.expansion * layer.head_dim},
        **{"depth": layer.network.depth, "residual": layer.network.residual, "width": x.shape[2]},
        **{"attention_heads": attention.num_heads, "prefix": prefix[0].shape[2], "columns": tensors[2].shape[0]},
        **{"gate_layers": layer.gate_layers, "momentum": layer.eta_proj is not None, "taps": layer.conv_size},
        **{"forgetting": layer.alpha_proj is not None, "read_eps": NORM_EPS, "eps": mixer.h_norm.eps},
        "write_scale": call.write_scale,
    }
    rules = (layer.chunk_size, layer.network.grad_clip)
    base = layer.params.weights if layer.config.forget_to == "start" else ()
    start = to_whole(stack(state.memory, batch), [-b for b in base]) if base else stack(state.memory, batch)
    y, normed, reads, loss, read, conv, *end = _Walk.apply(sizes, rules, *tensors, *start, *base)
    end = to_whole(end, base) if base else end
    memory = end_state(end, [], torch.zeros_like(state.memory.offset), layer.num_heads)
    conv = {**dict(zip(names, conv.unbind(0), strict=True)), "read": read}
    return y, normed, reads.unflatten(-1, (layer.num_heads, -1)), loss, NeuralMemoryState(memory, conv)


class _Pass:
    """What forward and backward share: the tensors by name, and the arguments of the two kernels."""

    def __init__(self, sizes: dict[str, Any], rules: tuple[int, float | None], tensors: tuple[Any, ...]) -> None:
        self.given, states = dict(zip(GIVEN, tensors, strict=False)), len(GIVEN) + sizes["depth"]
        self.state, self.base = list(tensors[len(GIVEN) : states]), list(tensors[states:])
        self.x: Tensor = self.given["x"]
        self.batch, self.count, self.length, self.heads = (sizes[n] for n in ("batch", "segments", "tokens", "heads"))
        self.rows, self.width, self.inner = self.batch * self.length, sizes["width"], self.heads * sizes["head_dim"]
        self.kv_proj: Tensor = self.given["inputs"][-2 * self.width :]
        q, k, v = self.x.new_empty(3, self.batch, self.length, self.heads, sizes["head_dim"])
        gates = self.x.new_empty(3, sizes["gate_layers"], self.batch, self.length, self.heads)
        block, norm = loop.block_size(rules[0]), [self.given["scale"], self.given["shift"]]
        group = group_size(self.length // block, block, state_bytes(self.state))
        norm = [] if norm[0] is None else norm
        rest = (None, rules[0], group, bool(sizes["residual"]), rules[1])
        self.inputs = Inputs(q, k, v, gates, [], self.state, norm, *rest, base=self.base)
        self.chunks, _ = loop.prepare(self.inputs)
        self.groups = -(-self.chunks.chunks // group)
        self.segment = SegmentArguments(**sizes, groups=self.groups, threads=torch.get_num_threads())
        self.segment.give(**self.given, q=q, k=k, v=v)
        if self.base:
            self.segment.give(base=self.base)

    def new(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape)

    def at(self, n: int, **tensors: Tensor | list[Tensor] | None) -> None:
        """Point the chunk loop's arguments of these names at segment n of the tensors, which have segments first."""
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                setattr(self.chunks, name, _address(value, n))
            elif value is not None:
                setattr(self.chunks, name, LAYERS(*(_address(t, n) for t in value)))

    def by_segment(self, t: Tensor) -> Tensor:
        """`[B, T, columns]` as `[segments, B * L, columns]`."""
        return t.view(self.batch, self.count, self.length, -1).transpose(0, 1).reshape(self.count, self.rows, -1)

    def by_row(self, t: Tensor) -> Tensor:
        """The inverse of `by_segment`."""
        return t.view(self.count, self.batch, self.length, -1).transpose(0, 1).flatten(1, 2)


def _address(tensor: Tensor, n: int) -> int:
    return tensor.data_ptr() + n * tensor.stride(0) * tensor.element_size()


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: dict[str, Any], rules: tuple[int, float | None], *tensors: Any) -> Any:
        w = _Pass(sizes, rules, tensors)
        x, given, new, (count, rows, width, inner) = w.x, w.given, w.new, (w.count, w.rows, w.width, w.inner)
        first = (x.flatten(0, 1) @ given["inputs"].t()).view(w.batch, x.shape[1], -1)
        (query,) = features([first[..., :inner]], [given["conv"][0]], [given["read_tail"]], w.heads, 1)
        h0, y, normed = new(3, count, rows, width)
        raw, reads, loss = (new(count, rows, columns) for columns in (sizes["columns"], inner, w.heads))
        gates, lse = new(count, *w.inputs.gates.shape), new(count, rows, sizes["attention_heads"])
        tails, kept = new(count + 1, *given["first_tails"].shape), [new(count, w.groups, *s.shape) for s in w.state]
        for to, start in zip([tails[0], *(k[0, 0] for k in kept)], [given["first_tails"], *w.state], strict=True):
            to.copy_(start)
        u, h, kv, end = new(rows, inner), new(rows, width), new(rows, 2 * width), [torch.empty_like(s) for s in w.state]
        shape = loop.kept_activations(w.inputs.q, w.state, rules[0], count * w.chunks.chunks, rules[1])
        large = [] if shape is None else [new(*shape).unflatten(0, (count, -1))]
        w.chunks.give(activation_reals=0 if shape is None else shape[2])
        held = {"first": first, "query": query, "h0": h0, "y": y, "normed": normed, "raw": raw, "gates": gates}
        held |= {"lse": lse, "tails": tails}
        w.segment.give(**held, state=kept, u=u, h=h, kv=kv, ring=1)
        for n in range(count):
            w.segment.step(READ, n, x.dtype)
            torch.mm(u, given["o_proj"].t(), out=h0[n])
            w.segment.step(NORM, n, x.dtype)
            torch.mm(h, w.kv_proj.t(), out=kv)
            w.segment.step(ATTEND, n, x.dtype)
            torch.mm(normed[n], given["writes"].t(), out=raw[n])
            w.segment.step(FEATURES, n, x.dtype)
            w.at(n, gates=gates, y=reads, loss=loss, state=kept, kept=kept, activations=large[0] if large else None)
            w.at(n + 1, end=kept) if n + 1 < count else w.chunks.give(end=end)
            loop.run(w.chunks, x.dtype, backward=False)
        ctx.sizes, ctx.rules, ctx.names, ctx.given = sizes, rules, tuple(held), len(tensors)
        ctx.save_for_backward(*tensors, *held.values(), *kept, *large)
        y, normed, reads, loss = (w.by_row(t) for t in (y, normed, reads, loss))
        ctx.mark_non_differentiable(loss)
        read_tail = first[:, x.shape[1] - tails.shape[3] :, :inner].clone()
        return y, normed, reads, loss, read_tail, tails[count].clone(), *end

    @staticmethod
    @first_order
    def backward(ctx: Any, *d_out: Tensor) -> Any:
        saved = ctx.saved_tensors
        tensors, rest = saved[: ctx.given], saved[ctx.given :]
        w, held = _Pass(ctx.sizes, ctx.rules, tensors), dict(zip(ctx.names, rest, strict=False))
        rest = rest[len(held) :]
        kept, large = list(rest[: len(w.state)]), rest[len(w.state) :]
        x, given, new, (count, rows, width, inner) = w.x, w.given, w.new, (w.count, w.rows, w.width, w.inner)
        d_y, d_normed, d_reads = (w.by_segment(d) for d in d_out[:3])
        d_tails, d_state = d_out[5].clone(), [d.clone() for d in d_out[6:]]
        # `d_first`, `d_query` and `dy` hold gradients of all tokens, the buffers below them those of `ring` segments
        first, ring, dy = held["first"], min(RING, count), d_y.clone()
        d_first, d_query = torch.empty_like(first), torch.empty_like(held["query"])
        d_raw, u, h, dh0, d_kv = (new(ring, rows, n) for n in (ctx.sizes["columns"], inner, width, width, 2 * width))
        kv, into, dh, du = (new(rows, columns) for columns in (2 * width, width, width, inner))
        dq, dk, dv = new(3, *w.inputs.q.shape)
        d_base = [new(count, w.batch, *b.shape) for b in w.base]
        sums = {f"d_{name}": torch.zeros_like(given[name]) for name in ("prefix_k", "prefix_v")}
        sums |= {f"d_{name}": x.new_zeros(w.segment.threads, width) for name in ("h_norm", "y_norm")}
        sums |= {"d_o_norm": x.new_zeros(w.batch, *given["o_norm"].shape)}
        sums |= {"d_conv": x.new_zeros(3, w.batch, *given["conv"].shape[1:])}
        sums |= {"d_norm": x.new_zeros(count, w.batch, w.heads, 2, given["o_norm"].shape[1])}
        w.chunks.give(dq=dq, dk=dk, dv=dv, d_gates=w.inputs.gates, d_end=d_state, d_state=d_state)
        w.chunks.give(activation_reals=large[0].shape[3] if large else 0)
        w.segment.give(**held, state=kept, d_first=d_first, d_query=d_query, d_state=d_state, d_gates=w.inputs.gates)
        w.segment.give(d_tails=d_tails, d_raw=d_raw, d_normed=into, dy=dy, d_kv=d_kv, dh=dh, dh0=dh0, du=du, **sums)
        w.segment.give(dq=dq, dk=dk, dv=dv, u=u, h=h, kv=kv, ring=ring, d_base=d_base or None)
        d_kv_proj, d_writes, d_o_proj = (torch.zeros_like(p) for p in (w.kv_proj, given["writes"], given["o_proj"]))
        d_bias = torch.zeros_like(given["bias"])
        for n in reversed(range(count)):
            at = n % ring
            w.segment.step(FEATURES, n, x.dtype)
            w.at(n, gates=held["gates"], kept=kept, activations=large[0] if large else None, dy=d_reads)
            w.at(n, d_norm=sums["d_norm"] if w.inputs.norm else None, d_base=d_base or None)
            loop.run(w.chunks, x.dtype, backward=True)
            w.segment.step(FEATURES_BACKWARD, n, x.dtype)
            torch.addmm(d_normed[n], d_raw[at], given["writes"], out=into)
            w.segment.step(Y_BACKWARD, n, x.dtype)
            w.segment.step(NORM, n, x.dtype)
            torch.mm(h[at], w.kv_proj.t(), out=kv)
            w.segment.step(ATTEND_BACKWARD, n, x.dtype)
            torch.mm(d_kv[at], w.kv_proj, out=dh)
            w.segment.step(NORM_BACKWARD, n, x.dtype)
            torch.mm(dh0[at], given["o_proj"], out=du)
            w.segment.step(READ_BACKWARD, n, x.dtype)
            if at == 0:
                some = min(ring, count - n)
                products = ((d_kv_proj, d_kv, h), (d_writes, d_raw, held["normed"][n:]), (d_o_proj, dh0, u))
                for total, d, a in products:
                    total.addmm_(d[:some].flatten(0, 1).t(), a[:some].flatten(0, 1))
                d_bias += d_raw[:some, :, 3 * inner : 3 * inner + d_bias.shape[0]].sum((0, 1))
        columns, d_columns = first[..., :inner], d_first[..., :inner]
        convolution = [columns], [given["conv"][0]], [given["read_tail"]], w.heads, 1, [d_columns]
        _, d_read_conv, d_read_tail = features_backward([d_query], *convolution)
        d_columns[:, x.shape[1] - d_tails.shape[2] :] += d_out[4]
        flat = d_first.flatten(0, 1)
        dx, d_inputs = (flat @ given["inputs"]).view_as(x).add_(w.by_row(dy)), flat.t() @ x.flatten(0, 1)
        d_inputs[-2 * width :] += d_kv_proj
        d_conv, d_norm = sums["d_conv"].sum(1), sums["d_norm"].sum((0, 1)).unbind(1)
        d_conv[0] += d_read_conv
        norms = (sums[name].sum(0) for name in ("d_o_norm", "d_h_norm", "d_y_norm"))
        tails = (sums["d_prefix_k"], sums["d_prefix_v"], d_read_tail, d_tails)
        weights = (d_inputs, d_writes, d_o_proj, d_bias, d_conv, *norms)
        rest = [*(d_norm if w.inputs.norm else (None, None)), *[None] * 3, *d_state, *(d.sum((0, 1)) for d in d_base)]
        return None, None, dx, *weights, *tails, *rest
