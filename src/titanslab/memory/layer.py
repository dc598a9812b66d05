"""`NeuralMemory`: the memory as a layer on hidden states (paper §3.1, §4.4)."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from inspect import Signature, signature
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.memory.backends import BASE_CHUNK, is_bare, takes_features, takes_layer
from titanslab.memory.checks import as_flags, check_input, check_lengths, check_state
from titanslab.memory.config import MemoryConfig, check_integer
from titanslab.memory.conv import ShortConv, short_conv
from titanslab.memory.cpu.features import convolve, norm_and_gate
from titanslab.memory.frozen import read_frozen, restart
from titanslab.memory.layer_cpu import STATS, Written, emit, write
from titanslab.memory.network import MemoryParams
from titanslab.memory.norms import rms_norm, unit_norm
from titanslab.memory.op import neural_memory
from titanslab.memory.padding import Padding, real_tokens
from titanslab.memory.start import start_layer, step_limits
from titanslab.memory.state import MemoryState, NeuralMemoryState, not_the_layers, with_read
from titanslab.memory.transforms import transformed

# calls of more tokens than this compute projections and gates again in backward instead of holding them
RECOMPUTE_TOKENS = 512
NORM_EPS = 1e-5


class NeuralMemory(nn.Module):
    """Neural long-term memory as a layer: `[B,T,hidden_size]` in and out, with a state in and out.

    `forward` writes each token and reads it back right after; `retrieve` reads alone, `update` writes alone.

    Args:
        hidden_size: width of the input.
        num_heads, depth, expansion, chunk_size, ...: the options of `MemoryConfig`, in its order.
    """

    def __init__(self, hidden_size: int, *options: Any, **named: Any) -> None:
        super().__init__()
        check_integer("hidden_size", hidden_size, 1)
        try:
            self.config = config = MemoryConfig(*options, **named)
        except TypeError as error:  # a missing or an unknown option
            raise TypeError(str(error).replace("MemoryConfig.__init__", "NeuralMemory")) from None
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, config.num_heads, config.width(hidden_size)
        self.network = config.network(self.head_dim)
        self.chunk_size, self.conv_size, self.backend = config.chunk_size, config.conv_size, config.backend
        self.gate_layers = config.gate_layers
        limits = self.step_limits()
        self.gate_limits = tuple(limits) if self.gate_layers > 1 else (min(limits),)
        heads, head_dim, inner = self.num_heads, self.head_dim, self.num_heads * self.head_dim
        for name in ("q", "k", "v"):
            self.add_module(f"{name}_proj", nn.Linear(hidden_size, inner, bias=False))
            if self.conv_size > 1:
                self.add_module(f"{name}_conv1d", ShortConv(inner, self.conv_size))
        gates = heads * self.gate_layers
        self.theta_proj = nn.Linear(hidden_size, gates)
        self.theta_key_proj = nn.Linear(inner, gates, bias=False) if config.gate_keys else None
        self.eta_proj = nn.Linear(hidden_size, gates) if config.momentum else None
        self.alpha_proj = nn.Linear(hidden_size, gates) if config.forgetting else None
        self.g_proj = nn.Linear(hidden_size, inner, bias=False)
        self.o_norm = nn.Parameter(torch.empty(heads, head_dim))
        self.o_proj = nn.Linear(inner, hidden_size, bias=False)
        self.memory_weights = nn.ParameterList(
            nn.Parameter(torch.empty(heads, *w)) for w in self.network.widths(head_dim)
        )
        self.memory_norm_weight = nn.Parameter(torch.empty(heads, head_dim)) if config.norm else None
        self.memory_norm_bias = nn.Parameter(torch.empty(heads, head_dim)) if config.norm else None
        self.reset_parameters()

    # help() and editors then show each option by its name.
    __init__.__signature__ = Signature(  # type: ignore[attr-defined]
        [*list(signature(__init__).parameters.values())[:2], *signature(MemoryConfig).parameters.values()]
    )

    @classmethod
    def from_config(cls, hidden_size: int, config: MemoryConfig) -> Self:
        """A layer of `hidden_size` with the options of `config`."""
        return cls(hidden_size, **config.to_dict())

    def reset_parameters(self) -> None:
        """Draw the initial values of all parameters, see `docs/choices.md`."""
        start_layer(self)

    def step_limits(self) -> list[float]:
        """The largest stable inner step of each layer of the memory at the start, see `start.step_limits`."""
        return step_limits(self.network, self.head_dim, 1 + self.config.chunk_coherence * (self.chunk_size - 1))

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, num_heads={self.num_heads}, chunk_size={self.chunk_size}, {self.network}"

    def initial_state(self, batch_size: int = 1, persistent: Tensor | None = None) -> NeuralMemoryState:
        """The state at which every document starts: M_0, or M after reading `persistent [N_p, hidden_size]`."""
        if not isinstance(batch_size, int | torch.SymInt) or batch_size < 0:
            raise ValueError(f"batch_size must be an integer of at least 0, got {batch_size!r:.60}")
        if persistent is not None and (persistent.dim() != 2 or persistent.shape[1] != self.hidden_size):
            raise ValueError(f"persistent must have shape [N_p, {self.hidden_size}], got {list(persistent.shape)}")
        if persistent is not None and persistent.shape[0] > 0:
            return self.update(persistent.unsqueeze(0)).as_start().expand(batch_size)
        params = MemoryParams(tuple(self.memory_weights)).to(torch.promote_types(self.o_norm.dtype, torch.float32))
        empty = self.o_norm.new_zeros(batch_size, self.conv_size - 1, self.num_heads * self.head_dim)
        memory = MemoryState.initial(params, batch_size).map(not_the_layers)
        return NeuralMemoryState(memory, dict.fromkeys(("q", "k", "v", "read"), empty))

    def forward(
        self,
        x: Tensor,
        state: NeuralMemoryState | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        initial: NeuralMemoryState | None = None,
        return_stats: bool = False,
        learn: bool = True,
        write_scale: float = 1.0,
    ) -> tuple:
        """Write every token, and read it back right after its own write.

        Args:
            x: `[B,T,hidden_size]`.
            state: the state after the tokens before; None = a document starts.
            mask: bool `[B,T]`, True for real tokens, False for padding, which may be anywhere in a row.
            lengths: int64 `[B]`, in place of a mask: the number of real tokens of each row, where they come first.
            reset: bool `[B,T]`, True for the first token of a document.
            initial: the state at which documents start, see `initial_state`; default M_0.
            return_stats: also return theta, eta, alpha `[B,T,H,1 or L]` and the inner loss `[B,T,H]`, detached, and
                "write", the sigmoid of theta's gate `[B,T,H,1 or L]`, with its gradient.
            learn: False freezes the memory: tokens read it, and weights, momentum and chunk do not change. The
                convolutions go on.
            write_scale: factor on theta.

        Returns:
            y `[B,T,hidden_size]` (0 at padding), the new state, and the dict of stats on request.

        Raises:
            ValueError: mask and lengths are both given, or write_scale is negative or not finite.
        """
        check_writes(learn, write_scale)
        mask, reset = self._check(x, state, mask, reset, initial)
        check_lengths(lengths, x)
        padding = self._padding(mask, lengths)
        if padding is not None:
            x, lengths = padding.compact(x), padding.lengths
            reset = None if reset is None else padding.compact(reset)
        rules = {"learn": learn, "write_scale": write_scale, "return_stats": return_stats}
        written = self.write(x, state, gated=True, lengths=lengths, reset=reset, initial=initial, **rules)
        if written.gate is None:
            y = self.output(written.y, x)
        else:
            y = emit(written.y, written.gate, self.o_norm, self.o_proj.weight, NORM_EPS)
        new, stats = written.state, written.stats
        if state is None and x.shape[1] < self.chunk_size:
            new = new.map(not_the_layers)  # the weights of the chunk's start are M_0
        if padding is not None:
            y, stats = padding.restore(y), {name: padding.restore(t) for name, t in stats.items()}
        return (y, new, _as_stats(stats)) if return_stats else (y, new)

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

        Arguments as in `forward`. Returns y `[B,T,hidden_size]` and a state with the same memory, except for rows in
        which a document begins, and with the last inputs of the read's own convolution.
        """
        if state is None:
            raise ValueError("state is None; retrieve reads a state: give one, such as layer.initial_state(batch_size)")
        mask, reset = self._check(x, state, mask, reset, initial)
        if x.shape[1] == 0:  # nothing is read, and no document begins
            mask = reset = None
        padding = self._padding(mask, None)
        if padding is not None:
            x, reset = padding.compact(x), None if reset is None else padding.compact(reset & padding.mask)
        lengths = None if padding is None else padding.lengths
        q, tail = self.queries(x, state, lengths=lengths, reset=reset, initial=initial)
        memory, start = state.memory, None
        memory.check("state", q, self.network.widths(self.head_dim), (q.shape[0],))
        if reset is not None:
            start = (self.initial_state() if initial is None else initial).memory
            memory = restart(memory, start, reset)
        y = self.output(self.recall(q, state.memory.weights, None if start is None else start.weights, reset), x)
        y = y if padding is None else padding.restore(y)
        return y, NeuralMemoryState(memory, {**state.conv, "read": tail})

    def queries(
        self,
        x: Tensor,
        state: NeuralMemoryState,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        initial: NeuralMemoryState | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The first half of `retrieve`, which no write changes: q `[B,T,H,D]`, and the tail of its convolution."""
        check_input(self, x)
        (q,), (tail,) = self._features("q", x, state, initial, lengths, reset, ("read",))
        return q, tail

    def recall(
        self,
        q: Tensor,
        weights: tuple[Tensor, ...],
        start: tuple[Tensor, ...] | None = None,
        reset: Tensor | None = None,
    ) -> Tensor:
        """The second half of `retrieve`: f(q_t; M) `[B,T,H,D]`; arguments as in `read_frozen`."""
        return read_frozen(q, weights, self.network, self.params, start, reset)

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """The layer's output `[B,T,hidden_size]` for reads `y [B,T,H,D]` by tokens `x`."""
        if self._compiled(y, self.o_norm, x):
            return self.gated_output(y, self.g_proj(x))
        return recompute(lambda y, x: self.gated_output(y, self.g_proj(x)), y, x)

    def gated_output(self, y: Tensor, gate: Tensor) -> Tensor:
        """Norm per head of `y [B,T,H,D]`, times `gate [B,T,H*D]` (`g_proj` of the tokens), and the projection."""
        if self._compiled(y, self.o_norm, gate):
            return self.o_proj(norm_and_gate(y, self.o_norm, gate, NORM_EPS))
        return self.o_proj((rms_norm(y, self.o_norm, NORM_EPS).flatten(-2) * gate).to(gate.dtype))

    @property
    def params(self) -> MemoryParams:
        """The slow parameters of the memory networks."""
        return MemoryParams(tuple(self.memory_weights), self.memory_norm_weight, self.memory_norm_bias)

    def gates(self, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """theta, eta, alpha `[B,T,H,1 or L]`, in float32 at least. OURS: theta in units of the stability limit.

        `k [B,T,H,D]` are the keys, which `gate_keys` needs.
        """
        return self.all_gates(x, k)[:3]

    def all_gates(self, x: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`gates`, then the sigmoid of theta's gate, for which 1 is a write at the stability limit."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        projections = self.gate_projections()
        with torch.autocast(x.device.type, enabled=False):
            if not all(is_bare(p) for p in projections):
                return self.activate(torch.cat([p(x) for p in projections], -1), k)
            weight = torch.cat([p.weight.to(x.dtype) for p in projections])
            bias = torch.cat([p.bias.to(x.dtype) for p in projections])
            return self.activate(F.linear(x, weight, bias), k)

    def gate_projections(self) -> list[nn.Linear]:
        """The projections of theta, eta and alpha, without those that an ablation takes away."""
        return [p for p in (self.theta_proj, self.eta_proj, self.alpha_proj) if p is not None]

    def activate(self, raw: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`all_gates` from the concatenated outputs `raw [B,T,...]` of the projections."""
        if self.theta_key_proj is not None:
            if k is None:
                raise ValueError("k is None, but the gates of a memory with gate_keys are made of the keys too")
            # A key has norm 1. The factor gives its entries the size of the input's entries.
            added = _linear(self.theta_key_proj, k.flatten(-2).to(raw.dtype)) * self.head_dim**0.5
            raw = raw + F.pad(added, (0, raw.shape[-1] - added.shape[-1]))
        raw = torch.sigmoid(raw).unflatten(-1, (-1, self.num_heads, self.gate_layers))
        parts = iter(raw.unbind(-3))
        write = next(parts)
        eta = torch.zeros_like(write) if self.eta_proj is None else next(parts)
        alpha = torch.zeros_like(write) if self.alpha_proj is None else next(parts)
        # With (1 - eta), momentum changes the lag of a write and not its size.
        return write * (1 - eta) * self.limits(raw), eta, alpha, write

    def limits(self, like: Tensor) -> Tensor:
        """`gate_limits`, the `step_limits` of the gates' layers, with dtype and device of `like`."""
        plain = type(like) is Tensor and not torch.compiler.is_compiling()  # else the tensor belongs to one trace
        return (_constant if plain else _tensor)(self.gate_limits, like.dtype, like.device)

    def write(self, x: Tensor, state: NeuralMemoryState | None, *, gated: bool = False, **rules: Any) -> Written:
        """Write the tokens `x [B,T,hidden_size]` and read them back, without the output projection.

        `rules`: all of `lengths`, `reset`, `initial`, `learn`, `write_scale` and `return_stats`, as in `forward`. With
        `gated` it may compute the output gate too.
        """
        plain = rules["learn"] and rules["lengths"] is None and rules["reset"] is None
        return write(self, gated, x, state, **rules) if plain and self.takes_pass(x) else self._write(x, state, **rules)

    def takes_pass(self, x: Tensor, projections: Sequence[nn.Module] = (), others: Sequence[Tensor] = ()) -> bool:
        """Whether the compiled training pass runs on `x`; `projections` and `others`: more of `takes_layer`."""
        if not torch.is_grad_enabled() or self.config.read_before_write:
            return False
        if self.config.forget_to == "start" and not BASE_CHUNK <= self.chunk_size <= x.shape[1]:
            return False
        projections = [*projections, *(getattr(self, f"{n}_proj") for n in "qkvgo"), *self.gate_projections()]
        convs = [getattr(self, f"{n}_conv1d") for n in "qkv" if self.conv_size > 1]
        if not all(is_bare(conv, ShortConv) for conv in convs):
            return False
        others = [*others, *self.parameters(recurse=False), *self.memory_weights, *(conv.weight for conv in convs)]
        return takes_layer(x, projections, others, self.conv_size, self.network.depth, self.backend)

    def _compiled(self, *tensors: Tensor) -> bool:
        """Whether compiled passes run; beside the two plain backends they would take the second derivative away."""
        return self.backend not in ("reference", "recurrent") and takes_features(*tensors)

    def _check(
        self,
        x: Tensor,
        state: NeuralMemoryState | None,
        mask: Tensor | None,
        reset: Tensor | None,
        initial: NeuralMemoryState | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The mask and the reset as bool; ValueError for an argument that does not fit."""
        check_input(self, x)
        batch = x.shape[0]
        check_state(self, "state", state, x, (batch,))
        check_state(self, "initial", initial, x, (1, batch))
        return as_flags("mask", mask, x), as_flags("reset", reset, x)

    @staticmethod
    def _padding(mask: Tensor | None, lengths: Tensor | None) -> Padding | None:
        """Where real tokens are; None for rows of real tokens, and where `lengths` says it."""
        if mask is None:
            return None
        if lengths is not None:
            raise ValueError("mask and lengths are both given; give lengths alone where the real tokens come first")
        # one token on a CPU: a look is cheap, and a mask without padding spares the ragged path
        if mask.shape[1] == 1 and mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
            return None
        return Padding.of(mask)

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

        # the compiled passes hold little
        light = lengths is not None or reset is not None or not self._compiled(x, self.o_norm)
        y = recompute(compute, x, *tails) if light else compute(x, *tails)
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
        convs = [getattr(self, f"{n}_conv1d") for n in names] if self.conv_size > 1 else []
        bare = all(is_bare(conv, ShortConv) for conv in convs)
        weights = [conv.weight for conv in convs] if bare else []
        tails = tuple(t.to(y[0].dtype).expand(x.shape[0], -1, -1) for t in tails)
        unit = len(names.replace("v", ""))  # q and k have unit norm, v comes last
        if weights and lengths is None and reset is None and self._compiled(*y, *weights):
            parts = convolve(y, weights, list(tails), self.num_heads, unit)
            back = self.conv_size - 1
            before = tails or (y[0].new_zeros(x.shape[0], back, y[0].shape[2]),) * len(y)
            ends = [torch.cat([t, p[:, -back:]], 1)[:, -back:] for t, p in zip(before, y, strict=True)]
            return *(p.unflatten(-1, (self.num_heads, self.head_dim)) for p in parts), *ends
        joined = torch.cat(y, -1)
        if not bare:  # a hook or a wrapper: each module is called
            befores, starts = tails or (None,) * len(y), fresh or (None,) * len(y)
            each = zip(convs, y, befores, starts, strict=True)
            called = [conv(part, before, lengths, reset, first) for conv, part, before, first in each]
            convolved, tail = (torch.cat([pair[i] for pair in called], -1) for i in (0, 1))
        elif weights:
            given = torch.cat(tails, -1) if tails else None
            start = None if fresh is None else torch.cat(fresh, -1)
            convolved, tail = short_conv(joined, torch.cat(weights, -1), given, lengths, reset, start)
        else:
            convolved, tail = joined, joined[:, :0]
        # Under autocast the float32 taps make the convolution float32. On a GPU the kernels take the narrow dtype.
        narrow = joined.dtype if x.device.type != "cpu" else convolved.dtype
        z = F.silu(convolved).unflatten(-1, (len(names) * self.num_heads, self.head_dim))
        units, values = (
            unit_norm(z[:, :, : unit * self.num_heads]).to(narrow),
            z[:, :, unit * self.num_heads :].to(narrow),
        )
        parts = [*units.split(self.num_heads, 2), *(values.split(self.num_heads, 2) if "v" in names else ())]
        return *parts, *tail.split(self.num_heads * self.head_dim, -1)

    def _write(
        self,
        x: Tensor,
        state: NeuralMemoryState | None,
        *,
        lengths: Tensor | None,
        reset: Tensor | None,
        initial: NeuralMemoryState | None,
        learn: bool,
        write_scale: float,
        return_stats: bool,
    ) -> Written:
        """`writer`'s function on any device: rows with padding, documents and frozen memories too."""
        if x.shape[1] == 0:  # nothing is read, and no document begins
            lengths = reset = None
        real = None if lengths is None else real_tokens(lengths, x.shape[1])
        if reset is not None and real is not None:
            reset = reset & real
        (q, k, v), conv = self._features("qkv", x, state, initial, lengths, reset)
        theta, eta, alpha, gate = self.all_gates(x, k)
        if write_scale != 1.0:
            theta = theta * write_scale
        gates = theta, eta, alpha
        if self.gate_layers == 1:
            theta, eta, alpha = (t[..., 0] for t in gates)
        before = None if state is None else state.memory
        start = None if initial is None else initial.memory
        ahead = learn and self.config.read_before_write and x.shape[1] > 0
        if learn:
            query = torch.cat((q[:, 1:], q[:, -1:]), dim=1) if ahead else q  # of each token, or of the one after it
            given = (query, k, v, theta, eta, alpha, self.network, self.params, before, self.chunk_size, self.backend)
            y, memory, loss = neural_memory(
                *given, mask=real, reset=reset, initial=start, return_loss=True, forget_to=self.config.forget_to
            )
        else:
            for name, part, rows in (("state", before, (x.shape[0],)), ("initial", start, (1, x.shape[0]))):
                if part is not None:
                    part.check(name, q, self.network.widths(self.head_dim), rows)
        if ahead or not learn:
            # no row reads the start in a call in which no document begins
            first = before if before is not None and reset is None else start or self.initial_state().memory
        if ahead:
            y = self._reads_before(q, y, before or first, first, reset)
            y = y if real is None else y.masked_fill(~real[:, :, None, None], 0)
        elif not learn:
            memory = before or first.at_boundary().expand(x.shape[0])
            y = self.recall(q, memory.weights, first.weights, reset)
            y = y if real is None else y.masked_fill(~real[:, :, None, None], 0)
            loss = self._loss(k, v, memory.weights, first.weights, reset) if return_stats else None
            memory = memory if reset is None else restart(memory, first, reset)
        tails = dict(zip("qkv", conv, strict=True))
        stats = dict(zip(STATS, (*gates, loss, gate), strict=True)) if return_stats else {}
        return Written(y, NeuralMemoryState(memory, with_read(tails, state or initial)), stats, None)

    def _reads_before(
        self, q: Tensor, later: Tensor, before: MemoryState, first: MemoryState, reset: Tensor | None
    ) -> Tensor:
        """Reads of `q [B,T,H,D]` before each token's write: `later` has each after the write of the token before.

        The first token reads `before`, the memory in which the call begins, and the first of a document reads `first`.
        """
        batch = q.shape[0]
        y = torch.cat((self.recall(q[:, :1], before.expand(batch).weights).to(later.dtype), later[:, :-1]), dim=1)
        if reset is None:
            return y
        start = self.recall(q, first.expand(batch).weights).to(y.dtype)
        return torch.where(reset[:, :, None, None], start, y)

    def _loss(
        self, k: Tensor, v: Tensor, weights: tuple[Tensor, ...], start: tuple[Tensor, ...] | None, reset: Tensor | None
    ) -> Tensor:
        """The inner loss `[B,T,H]` that each token would have had in a frozen memory."""
        wide = torch.promote_types(k.dtype, torch.float32)
        return (self.recall(k.to(wide), weights, start, reset) - v.to(wide)).square().sum(-1)


def check_writes(learn: bool | None, write_scale: float | None) -> None:
    """ValueError for a `learn` that is no bool, or a scale that is negative or has no effect; None = not said."""
    if not isinstance(learn, bool | None):
        raise ValueError(f"learn must be True or False, got {learn!r}")
    if write_scale is None:
        return
    if not (isinstance(write_scale, (int, float)) and 0 <= write_scale < math.inf):
        raise ValueError(f"write_scale must be a number of at least 0, got {write_scale!r}")
    if learn is False and write_scale != 1.0:
        raise ValueError(f"write_scale is {write_scale}, but with learn=False nothing is written; give one of them")


def _linear(projection: nn.Linear, x: Tensor) -> Tensor:
    """The projection of `x` in the dtype of `x`; a wrapped projection is called as it is."""
    return F.linear(x, projection.weight.to(x.dtype)) if is_bare(projection) else projection(x)


def _as_stats(stats: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached but for the write gate."""
    return {name: t if name == "write" else t.detach() for name, t in stats.items()}


def recompute(compute: Callable[..., Any], x: Tensor, *rest: Tensor) -> Any:
    """`compute(x, *rest)`; for many tokens backward computes the intermediate results again instead of holding them."""
    # the number of tokens is looked at last: in a trace it may be a symbol
    plain = not torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed()
    if plain or x.shape[1] <= RECOMPUTE_TOKENS:
        return compute(x, *rest)
    from torch.utils.checkpoint import checkpoint

    return checkpoint(compute, x, *rest, use_reentrant=False, preserve_rng_state=False)


def _tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # A kept tensor may be used in training later.
        return torch.tensor(values, dtype=dtype, device=device)


# The tensor of these values is kept for each dtype and device: a CUDA graph cannot record the copy to the GPU.
_constant = lru_cache(maxsize=256)(_tensor)
