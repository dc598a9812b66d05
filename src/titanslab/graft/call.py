"""`Call`: the facts about one call of a grafted model that its memories need."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from titanslab.memory.state import TensorTree

if TYPE_CHECKING:
    from titanslab.graft.cache import GraftCache


class Call:
    """One call of the decoder.

    Args:
        mask: bool `[B,T]`, real tokens; None where all are real.
        cache: receives the new states; None = memories start anew and their states are dropped.
        learn, write_scale: as in `NeuralMemory.forward`.
        stats: receives the stats of each memory by its place; None = not wanted.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        cache: "GraftCache | None" = None,
        learn: bool = True,
        write_scale: float = 1.0,
        stats: dict[int, dict[str, Tensor]] | None = None,
    ) -> None:
        self.mask, self.cache, self.learn, self.write_scale, self.stats = mask, cache, learn, write_scale, stats
        self.before: list[TensorTree | None] = [] if cache is None else list(cache.memories)
        self.ended = False

    def state(self, place: int) -> TensorTree | None:
        """The state of a memory before the call."""
        return self.before[place] if self.before else None

    def keep(self, place: int, state: TensorTree) -> None:
        """Store the state of a memory after the call; a recomputation in backward stores nothing."""
        if self.cache is not None and not self.ended:
            self.cache.memories[place] = state


def last_columns(mask: Any, batch: int, tokens: int, widths: tuple[int, ...]) -> Tensor | None:
    """The mask of a call's own tokens, bool `[B,T]`, from an attention mask; None where all are real.

    Raises:
        ValueError: a mask of another shape than `[B, width]` for one of `widths`.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] not in widths:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        allowed = " or ".join(f"[{batch}, {width}]" for width in sorted(set(widths)))
        raise ValueError(f"attention_mask must be {allowed} for a grafted model, with 1 for tokens; got {got}")
    own = mask[:, -tokens:].bool()
    return None if bool(own.all()) else own
