"""`NeuralMemory`: the memory as a layer on hidden states (paper §3.1, §4.4)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from titanslab.memory.chunked import compiled as chunk_compiled
from titanslab.memory.chunked import loop as chunk_loop
from titanslab.memory.chunked.op import implementation
from titanslab.memory.conv import short_conv
from titanslab.memory.cpu.ops import convolve, fits, norm_and_gate
from titanslab.memory.frozen import check_writes, read_frozen
from titanslab.memory.layer_cpu import emit, plain, project, remember, side_by_side
from titanslab.memory.layer_parameters import LayerParameters
from titanslab.memory.network import MemoryParams
from titanslab.memory.norms import rms_norm, unit_norm
from titanslab.memory.op import neural_memory
from titanslab.memory.padding import hiding, put_back, take, to_front
from titanslab.memory.state import MemoryState, NeuralMemoryState

# calls of so many tokens compute projections and gates again in backward, a third of what they would hold
RECOMPUTE_TOKENS = 512
PACK_TOKENS = 16  # the nodes of packed.py gain from so many


class NeuralMemory(LayerParameters):
    """Neural long-term memory as a layer: `[B,T,hidden_size]` in and out, with a state in and out.

    Args:
        hidden_size: width of the input.
        num_heads, depth, expansion, chunk_size, ...: the options of `MemoryConfig`, in its order.
    """

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, num_heads={self.num_heads}, chunk_size={self.chunk_size}, {self.network}"

    def _features(
        self,
        names: str,
        x: Tensor,
        state: NeuralMemoryState | None,
        initial: NeuralMemoryState | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        tail_names: tuple[str, ...] | None = None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """q, k or v (`names`) `[B,T,H,D]` of `x`, and the convolutions' new tails."""
        source = state or initial
        tails = [] if source is None else [source.conv[n] for n in tail_names or names]
        fresh = None if reset is None or initial is None else [initial.conv[n] for n in tail_names or names]

        def compute(x: Tensor, *tails: Tensor) -> tuple[Tensor, ...]:
            return self._convolve(names, x, tails, lengths, reset, fresh)

        y = _light(compute, x, *tails)
        return y[: len(names)], y[len(names) :]

    def _convolve(
        self,
        names: str,
        x: Tensor,
        tails: tuple[Tensor, ...],
        lengths: Tensor | None,
        reset: Tensor | None,
        fresh: list[Tensor] | None,
    ) -> tuple[Tensor, ...]:
        """Projection, short convolution, SiLU and, for q and k, unit norm; then the new tails."""
        y = [getattr(self, f"{n}_proj")(x) for n in names]
        weights = [getattr(self, f"{n}_conv1d").weight for n in names] if self.conv_size > 1 else []
        tails = tuple(t.to(y[0].dtype).expand(x.shape[0], -1, -1) for t in tails)
        unit = len(names.replace("v", ""))  # q and k have unit norm, v comes last
        if weights and lengths is None and reset is None and fits(*y, *weights):
            parts = convolve(y, weights, list(tails), self.num_heads, unit)
            back = self.conv_size - 1
            before = tails or (y[0].new_zeros(x.shape[0], back, y[0].shape[2]),) * len(y)
            ends = [torch.cat([t, p[:, -back:]], 1)[:, -back:] for t, p in zip(before, y, strict=True)]
            return *(p.unflatten(-1, (self.num_heads, self.head_dim)) for p in parts), *ends
        side_by_side = torch.cat(y, -1)
        if weights:
            tail = torch.cat(tails, -1) if tails else None
            start = None if fresh is None else torch.cat(fresh, -1)
            convolved, tail = short_conv(side_by_side, torch.cat(weights, -1), tail, lengths, reset, start)
        else:
            convolved, tail = side_by_side, side_by_side[:, :0]
        z = F.silu(convolved).unflatten(-1, (len(names) * self.num_heads, self.head_dim))
        units, values = unit_norm(z[:, :, : unit * self.num_heads]), z[:, :, unit * self.num_heads :]
        parts = [*units.split(self.num_heads, 2), *(values.split(self.num_heads, 2) if "v" in names else ())]
        return *parts, *tail.split(self.num_heads * self.head_dim, -1)

    def _packs(self, x: Tensor) -> bool:
        """Whether `packed.py` can train on `x`: a CPU's float32 or float64, enough tokens, bare projections."""
        if torch.compiler.is_compiling():
            return False  # fuses PyTorch's own operations; older releases cannot trace what follows
        if not torch.is_grad_enabled() or x.shape[1] < max(PACK_TOKENS, self.conv_size) or self.conv_size == 1:
            return False
        if self.backend not in ("auto", "chunked") or torch.is_autocast_enabled(x.device.type):
            return False
        projections = [*(getattr(self, f"{n}_proj") for n in "qkvgo"), *self._gate_projections()]
        if not plain(*projections) or not fits(x, *(p.weight for p in projections), *self.memory_weights):
            return False
        return implementation(x.device, x.dtype, self.network.depth)[0] not in (chunk_loop, chunk_compiled)

    def _packed(
        self,
        x: Tensor,
        state: NeuralMemoryState | None,
        initial: NeuralMemoryState | None,
        write_scale: float,
        gated: bool,
        weights: Tensor | None,
    ) -> tuple[Tensor, NeuralMemoryState, dict[str, Tensor], Tensor | None]:
        """`_plain` without mask and reset by the nodes of `packed.py`, and with `gated` the output gate.

        `weights`: what `side_by_side` made before, for many calls in a row.
        """
        source = state or initial
        convs = [getattr(self, f"{n}_conv1d").weight for n in "qkv"]
        tails = [] if source is None else [source.conv[n].to(x.dtype).expand(x.shape[0], -1, -1) for n in "qkv"]
        gates = self._gate_projections()
        scalars = sum(p.out_features for p in gates)
        sides = self._sides(gated) if weights is None else [weights]
        packed = project(x, self.num_heads, sides, convs, tails, scalars, gated)
        theta, eta, alpha = self._activate(packed.scalars + torch.cat([p.bias for p in gates]), packed.k)
        if write_scale != 1.0:
            theta = theta * write_scale
        y, memory, loss = neural_memory(
            packed.q,
            packed.k,
            packed.v,
            theta,
            eta,
            alpha,
            self.network,
            self.params,
            None if state is None else state.memory,
            self.chunk_size,
            "chunked",
            initial=None if initial is None else initial.memory,
            return_loss=True,
            op=partial(remember, packed, convs, tails),
        )
        conv = dict(zip("qkv", packed.tails, strict=True))
        stats = {"theta": theta, "eta": eta, "alpha": alpha, "loss": loss}
        return y, NeuralMemoryState(memory, self._with_read(conv, source)), stats, packed.gate

    def _sides(self, gated: bool) -> list[Tensor]:
        """Weights of the projections that one product makes; with `gated` the output gate's too."""
        names = "qkvg" if gated else "qkv"
        return [*(getattr(self, f"{n}_proj").weight for n in names), *(p.weight for p in self._gate_projections())]

    @staticmethod
    def _with_read(conv: dict[str, Tensor], source: NeuralMemoryState | None) -> dict[str, Tensor]:
        """The convolutions' tails and that of reads, which a write leaves alone."""
        read = conv["q"].new_zeros(conv["q"].shape) if source is None else source.conv["read"]
        return {**conv, "read": read.expand_as(conv["q"])}

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """The layer's output `[B,T,hidden_size]` for what was read, `y [B,T,H,D]`, by tokens `x`."""
        return _light(lambda y, x: self.gated_output(y, self.g_proj(x)), y, x)

    def gated_output(self, y: Tensor, gate: Tensor) -> Tensor:
        """Norm per head of `y [B,T,H,D]`, times `gate [B,T,H*D]` (`g_proj` of the tokens), and the projection."""
        if fits(y, self.o_norm, gate):
            return self.o_proj(norm_and_gate(y, self.o_norm, gate, 1e-5))
        return self.o_proj((rms_norm(y, self.o_norm, 1e-5).flatten(-2) * gate).to(gate.dtype))

    def initial_state(self, batch_size: int = 1, persistent: Tensor | None = None) -> NeuralMemoryState:
        """Where every document starts: M_0, or what is left after reading `persistent [N_p, hidden_size]`."""
        weight = self.o_proj.weight
        if persistent is not None and persistent.shape[0] > 0:
            state = self.update(persistent.unsqueeze(0))
            state = NeuralMemoryState(state.memory.at_boundary(), {**state.conv, "read": state.conv["q"]})
            return state.expand(batch_size)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        params = MemoryParams(tuple(w.to(dtype) for w in self.memory_weights))
        empty = weight.new_zeros(batch_size, self.conv_size - 1, self.num_heads * self.head_dim)
        return NeuralMemoryState(MemoryState.initial(params, batch_size), dict.fromkeys(("q", "k", "v", "read"), empty))

    def retrieve(
        self,
        x: Tensor,
        state: NeuralMemoryState,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        initial: NeuralMemoryState | None = None,
    ) -> tuple[Tensor, NeuralMemoryState]:
        """Read only: f(q_t; M) with the state's weights for every token of `x [B,T,hidden_size]`. Eq. 21.

        The memory stays as it is, but for rows in which a document begins (`reset`, `initial` as in `forward`); the
        returned state differs in the tail of the read's own convolution.
        """
        q, state = self.queries(x, state, mask=mask, reset=reset, initial=initial)
        y, state = self.recall(q, state, mask=mask, reset=reset, initial=initial)
        y = self.output(y, x)
        return y if mask is None else y.masked_fill(~mask[..., None], 0), state

    def queries(
        self,
        x: Tensor,
        state: NeuralMemoryState,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        initial: NeuralMemoryState | None = None,
    ) -> tuple[Tensor, NeuralMemoryState]:
        """The first half of `retrieve`, which no write changes: q `[B,T,H,D]`, and the state with the read's tail."""
        mask = hiding(mask)
        lengths = slot = None
        if mask is not None:
            x, _, reset, slot, lengths = to_front(x, mask, reset)
        (q,), (tail,) = self._features("q", x, state, initial, lengths, reset, ("read",))
        return q if slot is None else take(q, slot), NeuralMemoryState(state.memory, {**state.conv, "read": tail})

    def recall(
        self,
        q: Tensor,
        state: NeuralMemoryState,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        initial: NeuralMemoryState | None = None,
    ) -> tuple[Tensor, NeuralMemoryState]:
        """The second: what the memory says to `q`, `[B,T,H,D]`, and the state."""
        start = None if initial is None else initial.memory
        reset = reset if reset is None or mask is None else reset & mask
        y, memory, _ = read_frozen(q, q, q, self.network, self.params, state.memory, start, reset)
        return y, NeuralMemoryState(memory, state.conv)

    def update(
        self,
        x: Tensor,
        state: NeuralMemoryState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        initial: NeuralMemoryState | None = None,
    ) -> NeuralMemoryState:
        """Write only: the state after reading `x [B,T,hidden_size]`. Arguments as in `forward`."""
        return self.forward(x, state, mask=mask, reset=reset, initial=initial)[1]

    def forward(
        self,
        x: Tensor,
        state: NeuralMemoryState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        initial: NeuralMemoryState | None = None,
        return_stats: bool = False,
        learn: bool = True,
        write_scale: float = 1.0,
        output: bool = True,
        weights: Tensor | None = None,
    ) -> tuple:
        """Write every token, and read it back right after its own write.

        Args:
            x: `[B,T,hidden_size]`.
            state: what was read before; None = start of a document.
            mask: bool `[B,T]`, True for real tokens, anywhere in the row.
            reset: bool `[B,T]`, True for the first token of a document.
            initial: where documents start (`initial_state`); default M_0.
            return_stats: also return theta, eta, alpha `[B,T,H,1 or L]` and the inner loss `[B,T,H]`, detached.
            learn: False freezes the memory: tokens read it and leave weights, momentum and chunk as they are; the
                convolutions go on.
            write_scale: theta is multiplied by it.
            output: False leaves the method `output` to the caller, who can make it for many calls at once.
            weights: then, what `joined_weights` gave for all of them.

        Returns:
            y `[B,T,hidden_size]`, or without output `[B,T,H,D]` (0 at padding), and the new state, and the dict of
            stats on request.
        """
        check_writes(learn, write_scale)
        gate = None
        if learn and mask is None and reset is None and self._packs(x):
            y, new_state, stats, gate = self._packed(x, state, initial, write_scale, output, weights)
        else:
            y, new_state, stats = self._plain(x, state, mask, reset, initial, learn, write_scale, return_stats)
        if gate is not None:
            y = emit(y, gate, self.o_norm, self.o_proj.weight, 1e-5)
        elif output:
            y = self.output(y, x)
        return (y, new_state, _as_stats(stats)) if return_stats else (y, new_state)

    def joined_weights(self, x: Tensor) -> Tensor | None:
        """What `forward` joins in every call without output on tokens like `x [B,T,hidden_size]`; None = nothing."""
        return side_by_side(self._sides(gated=False)) if self._packs(x) else None

    def _plain(
        self,
        x: Tensor,
        state: NeuralMemoryState | None,
        mask: Tensor | None,
        reset: Tensor | None,
        initial: NeuralMemoryState | None,
        learn: bool,
        write_scale: float,
        with_stats: bool,
    ) -> tuple[Tensor, NeuralMemoryState, dict[str, Tensor]]:
        """What the memory says to each token, `[B,T,H,D]`, the state, and `with_stats` the gates and the loss."""
        if x.shape[1] == 0:  # nothing is read, and no document begins
            mask = reset = None
        lengths = slot = None
        real = mask = hiding(mask)
        if mask is not None:
            x, real, reset, slot, lengths = to_front(x, mask, reset)
        (q, k, v), conv = self._features("qkv", x, state, initial, lengths, reset)
        theta, eta, alpha = self.gates(x, k, real)
        if write_scale != 1.0:
            theta = theta * write_scale
        if self.gate_layers == 1:
            theta, eta, alpha = theta[..., 0], eta[..., 0], alpha[..., 0]
        before = None if state is None else state.memory
        document = None if initial is None else initial.memory
        if learn:
            y, memory, loss = neural_memory(
                q,
                k,
                v,
                theta,
                eta,
                alpha,
                self.network,
                self.params,
                before,
                self.chunk_size,
                self.backend,
                mask=real,
                reset=reset,
                initial=document,
                return_loss=True,
            )
        else:
            y, memory, loss = read_frozen(
                q, k, v, self.network, self.params, before, document, reset, return_loss=with_stats
            )
        tails = dict(zip("qkv", conv, strict=True))
        new_state = NeuralMemoryState(memory, self._with_read(tails, state or initial))
        stats = {"theta": theta, "eta": eta, "alpha": alpha, "loss": loss} if with_stats else {}
        if slot is not None and mask is not None:
            y, *found = (put_back(t, slot, mask) for t in (y, *stats.values()))
            stats = dict(zip(stats, found, strict=True))
        return y, new_state, stats


def _as_stats(stats: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached, each gate with a dimension for the layers."""
    return {n: t.detach() if t.dim() == 4 or n == "loss" else t.detach()[..., None] for n, t in stats.items()}


def _light(compute: Callable[..., Any], x: Tensor, *rest: Tensor) -> Any:
    """`compute(x, *rest)`; for many tokens, what it would hold for backward is computed again there instead."""
    if not torch.is_grad_enabled() or x.shape[1] < RECOMPUTE_TOKENS or torch.compiler.is_compiling():
        return compute(x, *rest)
    from torch.utils.checkpoint import checkpoint

    return checkpoint(compute, x, *rest, use_reentrant=False, preserve_rng_state=False)
