"""MAC: memory as context. Read, attend, write, read (paper §4.1, eqs. 21-25)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.layers import Attention, MemoryGate, RMSNorm
from titanslab.memory import MemoryState
from titanslab.memory.padding import take
from titanslab.memory.state import where_rows
from titanslab.models.call import Layout
from titanslab.models.config import TitansConfig
from titanslab.models.mixer import Mixer, make_memory
from titanslab.models.state import MixerState


class MemoryAsContext(Mixer):
    """Attention inside segments, over the persistent tokens, what the memory recalls, and the segment.

    For a segment s of `segment_len` tokens, with M the memory after the previous segment:

        h = M(q(s))                                       # Eq. 21, read only
        y_i = s_i + attention of s_i over [P | h_j, j <= i | s_j, j <= i]     # Eqs. 22, 23
        M_i = M after writing y_1 .. y_i                  # Eq. 24
        o_i = gate(y_i, M_i(y_i))                         # Eq. 25

    OURS: h_j is hidden from earlier positions and the last read uses M_i, not the segment's end: either would
    show the future. h is normalised before attention, y before it is written; h_j and s_j share a position. y keeps
    the token beside what attention adds: from attention's mean over a segment alone a memory learns no recall
    (docs/log.md).
    """

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.segment_len = config.segment_len
        self.num_persistent_tokens = config.num_persistent_tokens
        self.memory = make_memory(config)
        self.h_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, project_output=False)
        self.y_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate = MemoryGate(config.hidden_size, config.gate_type, config.rms_norm_eps)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        assert layout.rotary is not None
        x, rotary, steps, size = self.norm(x), layout.rotary, layout.steps, self.segment_len
        if steps is not None:
            x, size = take(x, steps.token), steps.size
            rotary = tuple(take(t.expand(x.shape[0], -1, -1), steps.token) for t in rotary)  # type: ignore[assignment]
        run = _Run(self, x, layout, state, return_state)
        queries = self.attention.queries(x, rotary)
        keys, values = self.attention.keys_values(x, rotary)
        asks, gates = run.asks(x), self.memory.g_proj(x)
        # cut once: the gradient of a slice is as long as all tokens, that of a cut is not
        cuts = ((x, 1), (asks, 1), (gates, 1), (queries, 2), (keys, 2), (values, 2))
        told = []
        for n, (s, ask, gate, q, *own) in enumerate(zip(*(t.split(size, dim) for t, dim in cuts), strict=True)):
            part = slice(n * size, n * size + s.shape[1])
            run.begin(n, part)
            h = self.h_norm(self.memory.gated_output(run.recall(ask), gate))  # Eq. 21
            tables = (rotary[0][:, part], rotary[1][:, part])
            y = s + run.attend(q, self.attention.keys_values(h, tables), tuple(own))  # Eqs. 22, 23
            normed = self.y_norm(y)
            told.append((y, normed, run.write(normed)))  # Eq. 24
        y, normed, read = (torch.cat(p, dim=1) if len(p) > 1 else p[0] for p in zip(*told, strict=True))
        o = self.o_proj(self.gate(y, self.memory.output(read, normed)))  # Eq. 25
        if steps is not None:
            o = take(o, steps.slot)
        return o, run.state() if return_state else None


class _Run:
    """The walk over a call's steps: whose memory is read, what attention sees, what the next call needs.

    Without padding, documents or a cache every step is a segment of its own, and nothing but the memory moves from
    one to the next. Otherwise rows differ: a step may go on with a segment of the cache or of the step before, and
    documents may begin in it.
    """

    def __init__(self, mixer: MemoryAsContext, x: Tensor, layout: Layout, state: MixerState | None, keep: bool) -> None:
        self.mixer, self.steps, self.keep = mixer, layout.steps, keep
        self.learn, self.write_scale = layout.learn, layout.write_scale
        self.batch = x.shape[0]
        self.weights = mixer.memory.joined_weights(x)
        self.initial = mixer.document_start(layout, state)
        self.alike: dict[int, Tensor] = {}  # masks of whole segments, by length
        if state is not None and state.memory is not None and state.attention is not None:
            self.memory = state.memory
            self.read_weights = state.read_weights
            self.keys, self.values = state.attention
        else:
            assert self.initial is not None
            self.memory = self.initial.expand(self.batch)
            self.read_weights = self.memory.memory.weights
            self.keys, self.values = self._empty(x)

    def _empty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Persistent keys and values, and no token of a segment yet."""
        mixer = self.mixer
        slots = 2 * mixer.segment_len if self.steps is not None or self.keep else 0
        head_dim = x.shape[2] // mixer.attention.num_heads
        empty = x.new_zeros(self.batch, mixer.attention.num_heads, slots, head_dim)
        if mixer.persistent is None:
            return empty, empty
        prefix = mixer.attention.keys_values(mixer.persistent.unsqueeze(0).to(x.dtype), None)
        keys, values = (torch.cat((t.to(empty.dtype).expand(self.batch, -1, -1, -1), empty), dim=2) for t in prefix)
        return keys, values

    def begin(self, n: int, part: slice) -> None:
        """Enter step n, columns `part`."""
        steps = self.steps
        if steps is None:
            self.mask = self.reset = self.filled = None
            self.read_weights = self.memory.memory.weights
            return
        self.mask, self.filled = steps.mask[:, part], steps.filled[:, n]
        self.reset = None if steps.reset is None else steps.reset[:, part]
        look = steps.size == 1 and steps.fresh.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and not bool(steps.fresh[:, n].any()):
            return  # most decode steps: the segment goes on in every row
        self.read_weights = tuple(
            where_rows(steps.fresh[:, n], new, old)
            for new, old in zip(self.memory.memory.weights, self.read_weights, strict=True)
        )

    def asks(self, x: Tensor) -> Tensor:
        """What all steps ask the memory, `[B,T,H,D]`: no write changes it."""
        mask, reset = (None, None) if self.steps is None else (self.steps.mask, self.steps.reset)
        asks, self.memory = self.mixer.memory.queries(x, self.memory, mask=mask, reset=reset, initial=self.initial)
        return asks

    def recall(self, ask: Tensor) -> Tensor:
        """Read the memory as it was when the segment began."""
        weights = self.read_weights
        reader = replace(self.memory, memory=MemoryState(weights, weights, weights, self.memory.memory.offset))
        h, after = self.mixer.memory.recall(ask, reader, reset=self.reset, initial=self.initial)
        self.read_weights = after.memory.weights
        return h

    def attend(self, q: Tensor, h: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> Tensor:
        """Attention over [persistent | h so far | segment so far]; remembers the two for the next step."""
        if self.filled is not None and self.reset is None and q.shape[2] == 1:
            return self._attend_one(q, h, own)
        keys, values = self.keys, self.values
        if self.filled is None:
            prefix = self.mixer.num_persistent_tokens
            keys, values = keys[:, :, :prefix], values[:, :, :prefix]
        y = F.scaled_dot_product_attention(
            q, torch.cat((keys, h[0], own[0]), dim=2), torch.cat((values, h[1], own[1]), dim=2), attn_mask=self._seen(q)
        )
        if self.keep or self.filled is not None:
            self.keys = self._store(self.keys, h[0], own[0])
            self.values = self._store(self.values, h[1], own[1])
        return self.mixer.attention.merge_heads(y)

    def _seen(self, q: Tensor) -> Tensor:
        """Which of [persistent | slots of the segment so far | h | own tokens] each query sees, what is added to
        its scores where all segments are alike: made once for all."""
        size, prefix = q.shape[2], self.mixer.num_persistent_tokens
        if self.filled is None and size in self.alike:
            return self.alike[size]
        seen = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
        if self.filled is None:
            mask = F.pad(torch.cat((seen, seen), dim=1), (prefix, 0), value=True)
            self.alike[size] = q.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
            return self.alike[size]
        slot = torch.arange(self.mixer.segment_len, device=q.device)
        before = (slot < self.filled[:, None])[:, None, :].expand(-1, size, -1)
        seen = seen.expand(q.shape[0], -1, -1)
        if self.reset is not None:
            document = self.reset.cumsum(1)
            before = before & (document == 0)[:, :, None]
            seen = seen & (document[:, :, None] == document[:, None, :])
        mask = torch.cat((before, before, seen, seen), dim=-1).unsqueeze(1)
        return F.pad(mask, (prefix, 0), value=True)

    def _attend_one(self, q: Tensor, h: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> Tensor:
        """The same for one token: it is put into its slots first, and sees those filled so far."""
        assert self.filled is not None
        assert self.mask is not None
        prefix = self.mixer.num_persistent_tokens
        slot = torch.arange(self.mixer.segment_len, device=q.device)
        here = ((slot == self.filled[:, None]) & self.mask)[:, None, None, :, None]

        def put(buffer: Tensor, h: Tensor, own: Tensor) -> Tensor:
            old = buffer[:, :, prefix:].unflatten(2, (2, -1))
            new = torch.where(here, torch.stack((h, own), dim=2), old).flatten(2, 3)
            return torch.cat((buffer[:, :, :prefix], new), dim=2)

        self.keys, self.values = put(self.keys, h[0], own[0]), put(self.values, h[1], own[1])
        seen = F.pad((slot <= self.filled[:, None]).repeat(1, 2), (prefix, 0), value=True)
        y = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=seen[:, None, None])
        return self.mixer.attention.merge_heads(y)

    def _store(self, buffer: Tensor, h: Tensor, own: Tensor) -> Tensor:
        """The running segment's slots with this step's tokens of it put in."""
        prefix, slots = self.mixer.num_persistent_tokens, self.mixer.segment_len
        parts = [buffer[:, :, :prefix]]
        for i, new in enumerate((h, own)):
            old = buffer[:, :, prefix + i * slots : prefix + (i + 1) * slots]
            if self.filled is None or self.mask is None:
                parts.append(F.pad(new, (0, 0, 0, slots - new.shape[2])))
                continue
            first, filled = torch.zeros_like(self.filled), self.filled
            if self.reset is not None:  # only the row's last document goes on
                column = torch.arange(new.shape[2], device=new.device)
                first = torch.where(self.reset, column, 0).amax(1)
                filled = torch.where(self.reset.any(1), 0, filled)
            column = torch.arange(slots, device=new.device) - filled[:, None] + first[:, None]
            there = (column >= first[:, None]) & (column < self.mask.sum(1)[:, None])
            index = column.clamp(0, new.shape[2] - 1)[:, None, :, None].expand(*new.shape[:2], -1, new.shape[3])
            parts.append(torch.where(there[:, None, :, None], new.gather(2, index), old))
        return torch.cat(parts, dim=2)

    def write(self, y: Tensor) -> Tensor:
        """Write y token by token; what the memory says to each right after its own write."""
        read, self.memory = self.mixer.memory(
            y,
            self.memory,
            mask=self.mask,
            reset=self.reset,
            initial=self.initial,
            learn=self.learn,
            write_scale=self.write_scale,
            output=False,
            weights=self.weights,
        )
        return read

    def state(self) -> MixerState:
        return MixerState(self.memory, self.read_weights, self.keys, self.values)
