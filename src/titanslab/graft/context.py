"""`ContextMemory`: the memory's outputs as additional keys and values (placement "mac")."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from titanslab.graft.memory import GraftedMemory
from titanslab.layers import Attention
from titanslab.memory import MemoryConfig, NeuralMemoryState
from titanslab.memory.padding import Padding
from titanslab.memory.state import TensorTree

if TYPE_CHECKING:
    from titanslab.graft.handle import Graft

CONTEXT = 64  # of the newest outputs of the memory, those that a token attends to


@dataclass(frozen=True, repr=False)
class ContextState(TensorTree):
    """State of a `ContextMemory` between calls.

    Args:
        memory: the state of the memory.
        keys, values: `[B,H,CONTEXT-1,D]`, of the memory's newest outputs.
        count: int64 `[B]`, tokens so far.
    """

    memory: NeuralMemoryState
    keys: Tensor
    values: Tensor
    count: Tensor


class ContextMemory(GraftedMemory):
    """A memory whose outputs y are keys and values, for the base's own input x as queries.

        y_t = M_t(x_t);   h_t = o_proj(softmax(q(x_t) k(y_j)) v(y_j)),   t - CONTEXT < j <= t

    OURS: the softmax is one of its own. In the softmax of the base, keys of zeros would take weight from the others, so
    that no start without effect would exist. `o_proj` of this attention starts at 0.
    """

    def __init__(self, hidden_size: int, config: MemoryConfig, graft: "Graft", place: int) -> None:
        super().__init__(hidden_size, config, graft, place)
        self.attention = Attention(hidden_size, config.num_heads, CONTEXT)
        self.start()

    @property
    def output_projection(self) -> torch.nn.Linear:
        """The projection that starts at 0."""
        attention = self._modules.get("attention")
        return self.o_proj if attention is None else attention.o_proj  # type: ignore[union-attr, return-value]

    def start(self) -> None:
        """Draw the memory's projection again, and set that of the attention to 0."""
        self.reset_parameters()
        super().start()

    def respond(self, x: Tensor, state: Any, **rules: Any) -> tuple[Any, ...]:
        """The memory's outputs, attended to by `x [B,T,hidden_size]`, the new state, and the stats if asked for."""
        y, memory, *stats = self(x, None if state is None else state.memory, **rules)
        mask, attention = rules["mask"], self.attention
        padding = None if mask is None else Padding.of(mask)
        queries, recalled = (x, y) if padding is None else (padding.compact(x), padding.compact(y))
        still = x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)  # rotary tables of position 0: the order is not used
        lengths = None if padding is None else padding.lengths
        out, held = attention(
            attention.q_proj(queries),
            attention.k_proj(recalled),
            attention.v_proj(recalled),
            still,
            state=None if state is None else (state.keys, state.values),
            count=None if state is None else state.count,
            lengths=lengths,
            return_state=True,
        )
        count = x.new_zeros(x.shape[0], dtype=torch.int64) if state is None else state.count
        count = count + (x.shape[1] if lengths is None else lengths)
        assert held is not None
        return out if padding is None else padding.restore(out), ContextState(memory, held[0], held[1], count), *stats

    def empty(self, rows: int) -> ContextState:
        """A state of the shapes that a state has."""
        heads = self.attention.num_heads
        keys = self.o_norm.new_zeros(rows, heads, CONTEXT - 1, self.hidden_size // heads)
        return ContextState(self.initial_state(rows), keys, keys, torch.zeros(rows, dtype=torch.int64))

    @staticmethod
    def state_of(tensors: dict[str, Tensor]) -> ContextState:
        """The state in the tensors of a file."""
        return ContextState.from_tensors(tensors)
