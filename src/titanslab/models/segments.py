"""MAC's walk over segments: whose memory is read, what attention sees, and what the next call needs.

Without padding, documents or a cache every step is a segment of its own, and the memory alone moves from one to the
next. Otherwise rows differ: a step may go on with a segment of the cache or of the step before, and documents may begin
in it. Whatever no write changes is computed for all steps at once.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from titanslab.memory.padding import take
from titanslab.memory.state import NeuralMemoryState, where_rows
from titanslab.models.call import Call
from titanslab.models.state import MixerState
from titanslab.models.walk_cpu import takes_walk, walk

if TYPE_CHECKING:
    from titanslab.models.mac import MemoryAsContext

KeysValues = tuple[Tensor, Tensor]


class Segment(NamedTuple):
    """One step of the walk.

    x: `[B, L, hidden]`, the tokens after the block's norm. query: `[B, L, H, D]`, by which they read the memory; gate:
    `[B, L, H*D]`, the gate of that read. q, k, v: `[B, heads, L, D]` of attention. rotary: tables of their positions.
    """

    x: Tensor
    query: Tensor
    gate: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    rotary: KeysValues


class Segments:
    """Iterate over the steps of one call; in each, `retrieve`, `attend` and `update` once, in that order."""

    def __init__(self, mixer: "MemoryAsContext", x: Tensor, call: Call, state: MixerState | None, keep: bool) -> None:
        self.mixer, self.memory, self.call, self.steps = mixer, mixer.memory, call, call.steps
        self.initial = mixer.document_start(call, state)
        # the call's slots for keys and values of the running segment: needed by a ragged walk and by a next call
        self.stores = keep or self.steps is not None
        self.mask: Tensor | None = None
        self.reset: Tensor | None = None
        self.filled: Tensor | None = None
        self.seen: dict[int, Tensor] = {}  # attention masks of whole segments, by length
        self.stats: list[dict[str, Tensor]] = []
        # y, y normalised and reads of the segments that a kernel has walked over
        self.written: list[tuple[Tensor, Tensor, Tensor]] = []
        self._begin(x, state)
        walked = self._walk_whole(x)
        self.tokens = self._per_token(x, walked) if walked < x.shape[1] else ()

    def _begin(self, x: Tensor, state: MixerState | None) -> None:
        """Set the states with which the walk starts."""
        if state is not None and state.memory is not None and state.attention is not None:
            self.now, self.read_weights = state.memory, state.read_weights
            self.keys, self.values = state.attention
        else:
            assert self.initial is not None
            self.now = self.initial.expand(x.shape[0])
            self.read_weights = self.now.memory.weights
            self.keys, self.values = self._no_segment(x)

    def _walk_whole(self, x: Tensor) -> int:
        """Walk over the whole segments at once where a kernel does it; returns the number of their tokens."""
        length = self.mixer.segment_len
        count = (x.shape[1] - self.stores) // length  # a next call needs the last segment's keys and values
        if self.steps is not None or not takes_walk(self.mixer, x, self.call, self.now.memory, count):
            return 0
        prefix = self.mixer.num_persistent_tokens
        keys, values = self.keys[:, :, :prefix], self.values[:, :, :prefix]
        y, normed, reads, loss, self.now = walk(self.mixer, x[:, : count * length], self.call, self.now, (keys, values))
        self.written.append((y, normed, reads))
        if self.call.stats is not None:
            theta, eta, alpha, write = self.memory.all_gates(normed, None)
            theta = theta * self.call.write_scale
            self.stats.append({"theta": theta, "eta": eta, "alpha": alpha, "loss": loss, "write": write})
        return count * length

    def _per_token(self, x: Tensor, walked: int) -> tuple[Tensor, ...]:
        """The fields of `Segment` for all tokens that are left, in the order of the walk."""
        mixer, memory, call, rotary = self.mixer, self.mixer.memory, self.call, self.call.rotary
        assert rotary is not None
        if walked:
            x, rotary = x[:, walked:], (rotary[0][:, walked:], rotary[1][:, walked:])
        query, tail = memory.queries(x, self.now, lengths=call.lengths, reset=call.reset, initial=self.initial)
        self.now = NeuralMemoryState(self.now.memory, {**self.now.conv, "read": tail})
        if self.steps is not None:
            x, query = take(x, self.steps.token), take(query, self.steps.token)
            cos, sin = (take(table.expand(x.shape[0], -1, -1), self.steps.token) for table in rotary)
            rotary = cos, sin
        q = mixer.attention.queries(x, rotary)
        return x, query, memory.g_proj(x), q, *mixer.attention.keys_values(x, rotary), *rotary

    def _no_segment(self, x: Tensor) -> KeysValues:
        """Keys and values of the persistent tokens, and empty slots."""
        attention, persistent = self.mixer.attention, self.mixer.persistent
        slots = 2 * self.mixer.segment_len if self.stores else 0
        empty = x.new_zeros(x.shape[0], attention.num_heads, slots, x.shape[2] // attention.num_heads)
        if persistent is None:
            return empty, empty
        prefix = attention.keys_values(persistent.unsqueeze(0).to(x.dtype), None)
        keys, values = (torch.cat((t.to(empty.dtype).expand(x.shape[0], -1, -1, -1), empty), dim=2) for t in prefix)
        return keys, values

    def __iter__(self) -> Iterator[Segment]:
        if not self.tokens:
            return
        size = self.mixer.segment_len if self.steps is None else self.steps.size
        dims = (1, 1, 1, 2, 2, 2, 1, 1)
        # `split`, not slices: autograd pads the gradient of each slice to the full length, which is quadratic in T
        parts = [t.split(size, dim) for t, dim in zip(self.tokens, dims, strict=True)]
        for n, (*fields, cos, sin) in enumerate(zip(*parts, strict=True)):
            self._enter(n, slice(n * size, n * size + fields[0].shape[1]))
            yield Segment(*fields, rotary=(cos, sin))  # type: ignore[misc]

    def _enter(self, n: int, part: slice) -> None:
        """Begin step n, the slots `part`: rows in which a segment begins read the newest memory from now on."""
        steps, newest = self.steps, self.now.memory.weights
        if steps is None:
            self.read_weights = newest
            return
        self.mask = None if steps.mask is None else steps.mask[:, part]
        self.reset = None if steps.reset is None else steps.reset[:, part]
        self.filled = steps.filled[:, n]
        fresh = steps.fresh[:, n]
        look = steps.size == 1 and fresh.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and not bool(fresh.any()):
            return  # most decode steps: the segment goes on in every row
        self.read_weights = tuple(where_rows(fresh, a, b) for a, b in zip(newest, self.read_weights, strict=True))

    def retrieve(self, s: Segment) -> Tensor:
        """h `[B, L, hidden]`: the memory's answer, as it was when the segment began. Eq. 21."""
        start = None if self.reset is None or self.initial is None else self.initial.memory.weights
        h = self.memory.recall(s.query, self.read_weights, start, self.reset)
        if start is not None and self.reset is not None:
            ended, old = self.reset.any(1), self.read_weights
            self.read_weights = tuple(where_rows(ended, a, b) for a, b in zip(start, old, strict=True))
        return self.memory.gated_output(h, s.gate)

    def update(self, y: Tensor) -> Tensor:
        """Write `y [B, L, hidden]` token by token; returns the reads `[B, L, H, D]`, each right after its own write."""
        lengths = None if self.mask is None else self.mask.sum(1)
        rules: dict[str, Any] = {
            "lengths": lengths,
            "reset": self.reset,
            "initial": self.initial,
            "learn": self.call.learn,
        }
        rules |= {"write_scale": self.call.write_scale, "return_stats": self.call.stats is not None}
        written = self.memory.write(y, self.now, **rules)
        self.now = written.state
        self.stats.append(written.stats)
        return written.y

    def in_rows(self, o: Tensor) -> Tensor:
        """Outputs of all steps in the order of the call's columns."""
        if self.call.stats is not None:
            joined = {name: torch.cat([s[name] for s in self.stats], dim=1) for name in self.stats[0]}
            if self.steps is not None:
                joined = {name: take(t, self.steps.slot) for name, t in joined.items()}
            self.call.stats.update(joined)
        return o if self.steps is None else take(o, self.steps.slot)

    def state(self) -> MixerState:
        """The state after the last step."""
        return MixerState(self.now, self.read_weights, self.keys, self.values)

    def attend(self, s: Segment, h: Tensor) -> Tensor:
        """Attention over [persistent | h so far | segment so far], `[B, L, hidden]`. Eqs. 22, 23."""
        recalled = self.mixer.attention.keys_values(h, s.rotary)
        if self.filled is not None and self.reset is None and s.q.shape[2] == 1:
            y = self._attend_one(s, recalled)
        else:
            prefix = None if self.filled is not None else self.mixer.num_persistent_tokens
            keys = torch.cat((self.keys[:, :, :prefix], recalled[0], s.k), dim=2)
            values = torch.cat((self.values[:, :, :prefix], recalled[1], s.v), dim=2)
            y = F.scaled_dot_product_attention(s.q, keys, values, attn_mask=self._visible(s.q))
            if self.stores:
                self.keys = self._store(self.keys, recalled[0], s.k)
                self.values = self._store(self.values, recalled[1], s.v)
        return self.mixer.attention.merge_heads(y)

    def _visible(self, q: Tensor) -> Tensor:
        """What each query sees of [persistent | slots of the segment so far | h | own tokens].

        A bool mask; where steps are whole segments, the same for all of a length, as numbers added to the scores.
        """
        size, prefix = q.shape[2], self.mixer.num_persistent_tokens
        if self.filled is None and size in self.seen:
            return self.seen[size]
        seen = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
        if self.filled is None:
            mask = F.pad(torch.cat((seen, seen), dim=1), (prefix, 0), value=True)
            self.seen[size] = q.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
            return self.seen[size]
        slot = torch.arange(self.mixer.segment_len, device=q.device)
        before = (slot < self.filled[:, None])[:, None, :].expand(-1, size, -1)
        seen = seen.expand(q.shape[0], -1, -1)
        if self.reset is not None:
            document = self.reset.cumsum(1)
            before = before & (document == 0)[:, :, None]
            seen = seen & (document[:, :, None] == document[:, None, :])
        mask = torch.cat((before, before, seen, seen), dim=-1).unsqueeze(1)
        return F.pad(mask, (prefix, 0), value=True)

    def _attend_one(self, s: Segment, recalled: KeysValues) -> Tensor:
        """Attention of one token: it is put into its slots first, and sees those filled so far."""
        assert self.filled is not None
        prefix = self.mixer.num_persistent_tokens
        slot = torch.arange(self.mixer.segment_len, device=s.q.device)
        here = slot == self.filled[:, None]
        here = (here if self.mask is None else here & self.mask)[:, None, None, :, None]

        def put(buffer: Tensor, h: Tensor, own: Tensor) -> Tensor:
            old = buffer[:, :, prefix:].unflatten(2, (2, -1))
            new = torch.where(here, torch.stack((h, own), dim=2), old).flatten(2, 3)
            return torch.cat((buffer[:, :, :prefix], new), dim=2)

        self.keys, self.values = put(self.keys, recalled[0], s.k), put(self.values, recalled[1], s.v)
        seen = F.pad((slot <= self.filled[:, None]).repeat(1, 2), (prefix, 0), value=True)
        return F.scaled_dot_product_attention(s.q, self.keys, self.values, attn_mask=seen[:, None, None])

    def _store(self, buffer: Tensor, h: Tensor, own: Tensor) -> Tensor:
        """The running segment's slots with this step's tokens of it put in."""
        prefix, slots = self.mixer.num_persistent_tokens, self.mixer.segment_len
        parts = [buffer[:, :, :prefix]]
        for i, new in enumerate((h, own)):
            old = buffer[:, :, prefix + i * slots : prefix + (i + 1) * slots]
            if self.filled is None:
                parts.append(F.pad(new, (0, 0, 0, slots - new.shape[2])))
                continue
            first, filled = torch.zeros_like(self.filled), self.filled
            if self.reset is not None:  # the row's last document alone goes on
                column = torch.arange(new.shape[2], device=new.device)
                first = torch.where(self.reset, column, 0).amax(1)
                filled = torch.where(self.reset.any(1), 0, filled)
            held = new.shape[2] if self.mask is None else self.mask.sum(1)[:, None]
            column = torch.arange(slots, device=new.device) - filled[:, None] + first[:, None]
            there = (column >= first[:, None]) & (column < held)
            index = column.clamp(0, new.shape[2] - 1)[:, None, :, None].expand(*new.shape[:2], -1, new.shape[3])
            parts.append(torch.where(there[:, None, :, None], new.gather(2, index), old))
        return torch.cat(parts, dim=2)
