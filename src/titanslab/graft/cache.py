"""`GraftCache`: the keys and values of the base and the states of the memories, one object for `generate()`."""

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from titanslab.memory import NeuralMemoryState

if TYPE_CHECKING:
    from titanslab.graft.handle import Graft


class GraftCache(Cache):
    """Keys, values and memories of a grafted model after some tokens.

    `learn` and `write_scale` may be set at any time, and hold for the tokens read from then on.

    Args:
        graft: the `Graft` of the model, `model.graft`.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, graft: "Graft") -> None:
        config: Any = graft.decoder.body.config
        super().__init__(layers=DynamicCache(config=config).layers)
        self._graft = weakref.ref(graft)
        self.learn = True
        self.write_scale = 1.0
        self.memories: list[NeuralMemoryState | None] = [None] * len(graft.memories)
        self.columns = 0  # tokens read, padding included
        self.rows = -1
        self._coming = 0

    def __repr__(self) -> str:
        return f"GraftCache(batch_size={self.rows}, seq_length={self.columns}, memories={len(self.memories)})"

    @property
    def batch_size(self) -> int:
        """Number of rows, -1 while the cache is empty."""
        return self.rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far, padding included."""
        return self.columns

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Tokens before the call's first."""
        return self.columns

    def check(self, graft: "Graft", batch: int) -> None:
        """ValueError unless the cache belongs to the model and has as many rows as the call."""
        if self._graft() is not graft:
            raise ValueError("the cache belongs to another grafted model; give one of model.graft.cache()")
        if self.rows not in (-1, batch):
            raise ValueError(
                f"the cache holds {self.rows} rows, the call has {batch}; batch_repeat_interleave(n) repeats its rows"
            )
        self.rows = batch

    def begin(self, tokens: int) -> None:
        """A call of `tokens` columns begins."""
        self._coming = tokens

    def end(self, failed: bool) -> None:
        """The call has ended; a call that failed leaves a cache that cannot be used."""
        self.columns += 0 if failed else self._coming
        self._coming = 0

    def crop(self, tokens_to_remove: int) -> NoReturn:
        raise NotImplementedError(
            "a memory cannot unlearn tokens, so a GraftCache cannot be cropped; fork() it before tokens you may drop"
        )

    def _replace(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.memories = [None if state is None else state.map(fn) for state in self.memories]
        held: list[Any] = [layer for layer in self.layers if getattr(layer, "keys", None) is not None]
        for layer in held:
            layer.keys, layer.values = fn(layer.keys), fn(layer.values)
        tensors = [s.memory.offset for s in self.memories if s is not None] + [layer.keys for layer in held]
        if tensors:
            self.rows = tensors[0].shape[0]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes a copy of the former row `indices[i]`."""
        self._replace(lambda t: t.index_select(0, indices.to(t.device)))

    reorder_cache = batch_select_indices  # type: ignore[assignment]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._replace(lambda t: t.repeat_interleave(repeats, dim=0))
