"""Loss by distance of a grafted model in five conditions, from which one sees whether the memory is used.

A model can lower its loss with a memory that it does not use as one: weights that were trained beside it adapt to the
kind of text. The memory of another document, in the place of the own one, tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from titanslab.denormals import as_zero
from titanslab.evaluation.perplexity import PositionBucket, position_buckets
from titanslab.graft import GraftCache, graft_of
from titanslab.memory.state import TensorTree

ON, OFF, OTHER, WINDOW, FULL = "memory on", "memory off", "another document's memory", "window alone", "full context"
CONDITIONS = (ON, OFF, OTHER, WINDOW, FULL)
FIRST_BUCKET = 32  # tokens
LONGEST_PIECE = 512  # tokens
LOGITS_AT_ONCE = 2**25
DOCUMENTS, TOKENS = 4, 4096  # that are measured, and tokens of each


@dataclass(frozen=True)
class Controls:
    """The losses of a grafted model on some documents.

    Args:
        memories: of the graft; 0 = it has a window alone.
        window_size: tokens that attention sees; None = all.
        losses: condition -> `[documents, T]`, the loss in nats of the token after each position; NaN where there is no
            token, or where the condition was not measured. A condition that was not measured is missing.
        output: root mean square of the memories' outputs. write: mean of the sigmoid of theta's gate.
    """

    window_size: int | None
    losses: dict[str, np.ndarray]
    output: float
    write: float
    memories: int = 1

    def positions(self, condition: str) -> list[PositionBucket]:
        """The loss by tokens of context before the predicted one."""
        losses = self.losses[condition]
        return position_buckets(np.nansum(losses, 0), (~np.isnan(losses)).sum(0), FIRST_BUCKET)

    def beyond(self, condition: str, other: str | None = None) -> np.ndarray:
        """Losses `[n]` of tokens whose window does not reach the document's start, less those of `other`."""
        start = self.window_size or 0
        values = self.losses[condition][:, start:]
        values = values if other is None else values - self.losses[other][:, start:]
        return values[~np.isnan(values)]


def measure_controls(
    model: Any,
    documents: Sequence[np.ndarray],
    *,
    full_context: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Controls:
    """Measure the loss of each token of some documents in each of `CONDITIONS`.

    "memory off" leaves the memories out and keeps what was trained beside them. "another document's memory" reads each
    piece with the memory that the next document has left after as many tokens; it needs two documents. "window alone"
    is the base with the window and without LoRA. "full context" is the base with all tokens before.

    Args:
        model: a grafted model; it is in evaluation mode afterwards.
        documents: the ids of each document, at least two tokens.
        full_context: tokens to which "full context" is measured; None = the positions of the base.
        progress: called with the tokens read and all tokens.

    Raises:
        ValueError: the model has no graft, there is no document, or one is shorter than two tokens.
    """
    if not documents or min(map(len, documents)) < 2:
        raise ValueError("documents must hold one array of ids or more, each of at least two tokens")
    return _Measurement(model, documents, full_context, progress).measure()


class _Measurement:
    """`measure_controls` at work."""

    def __init__(
        self,
        model: Any,
        documents: Sequence[np.ndarray],
        full_context: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.graft, self.progress = model.eval(), graft_of(model), progress
        rows = [torch.from_numpy(np.asarray(ids, dtype=np.int64)) for ids in documents]
        device = next(self.graft.decoder.body.parameters()).device
        self.ids = pad_sequence(rows, batch_first=True).to(device)
        self.mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        config = model.config.get_text_config()
        size = self.graft.window.size
        piece = min(LONGEST_PIECE, LOGITS_AT_ONCE // (len(rows) * config.vocab_size) // 64 * 64 or 64)
        self.piece = piece if size is None else min(piece, size)
        length = self.ids.shape[1] - 1
        limit = full_context or getattr(config, "max_position_embeddings", None)
        self.full = length if limit is None else min(length, limit)
        self.lora = hasattr(model, "peft_config")
        self.done, passes = 0, 1 + self.lora + (1 + (len(rows) > 1)) * bool(self.graft.memories)
        self.total = len(rows) * (passes * length + self.full)

    def without_lora(self) -> AbstractContextManager[Any]:
        """Within it, the base is without the adapters of PEFT; memories and window stay."""
        return type(self.model).disable_adapter(self.model) if self.lora else nullcontext()

    @as_zero()
    @torch.no_grad()
    def measure(self) -> Controls:
        """All conditions."""
        found, output, write = self._own_and_other()
        with self.graft.window_alone():
            found[OFF] = self._read(self.graft.cache()) if self.graft.memories else found[ON]
        if self.lora:
            with self.without_lora(), self.graft.window_alone():
                found[WINDOW] = self._read(self.graft.cache())
        else:
            found[WINDOW] = found[OFF]
        with self.without_lora(), self.graft.disabled():
            found[FULL] = self._read(DynamicCache(config=self.model.config), self.full, whole_mask=True)
        ordered = {name: found[name] for name in CONDITIONS if name in found}
        return Controls(self.graft.window.size, ordered, output, write, len(self.graft.memories))

    def _pieces(self, length: int) -> Iterator[slice]:
        return (slice(start, min(start + self.piece, length)) for start in range(0, length, self.piece))

    def _read(self, cache: Any, length: int | None = None, whole_mask: bool = False) -> np.ndarray:
        """The losses of one condition `[documents, T]`, up to position `length`."""
        length = self.ids.shape[1] - 1 if length is None else length
        parts = [self._step(cache, part, whole_mask) for part in self._pieces(length)]
        return self._whole(parts)

    def _own_and_other(self) -> tuple[dict[str, np.ndarray], float, float]:
        """The conditions with a memory, side by side; and the mean of outputs and gates."""
        own, other = self.graft.cache(), self.graft.cache()
        parts: dict[str, list[np.ndarray]] = {ON: [], OTHER: []}
        two = len(self.ids) > 1 and bool(self.graft.memories)
        sizes, gates = list[float](), list[float]()
        for part in self._pieces(self.ids.shape[1] - 1):
            if two:
                other.memories = _rolled(own)
                parts[OTHER].append(self._step(other, part))
            with ExitStack() as stack:
                stats: dict[int, dict[str, Tensor]] = {}
                self.graft.stats = stats
                stack.callback(setattr, self.graft, "stats", None)
                parts[ON].append(self._step(own, part))
            real = self.mask[:, part].bool()
            for memory in stats.values():
                sizes.append(float(memory["output"][real].square().mean()))
                gates.append(float(memory["write"][real].mean()))
        found = {name: self._whole(losses) for name, losses in parts.items() if losses}
        return found, float(np.mean(sizes or [0.0])) ** 0.5, float(np.mean(gates or [0.0]))

    def _step(self, cache: Any, part: slice, whole_mask: bool = False) -> np.ndarray:
        """The losses of the tokens after those of a piece, NaN where there is none."""
        mask = self.mask[:, : part.stop] if whole_mask else self.mask[:, part]
        inputs: dict[str, Any] = {self.graft.decoder.cache_name: cache}
        logits = self.model(input_ids=self.ids[:, part], attention_mask=mask, use_cache=True, **inputs).logits
        wanted = self.ids[:, part.start + 1 : part.stop + 1]
        losses = functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        scored = self.mask[:, part.start + 1 : part.stop + 1].bool()
        losses = losses.view_as(wanted).double().masked_fill(~scored, torch.nan)
        self.done += wanted.numel()
        if self.progress is not None:
            self.progress(self.done, self.total)
        return losses.cpu().numpy()

    def _whole(self, parts: list[np.ndarray]) -> np.ndarray:
        """The parts one after the other, and NaN up to the length of the longest document."""
        losses = np.concatenate(parts, 1)
        missing = self.ids.shape[1] - 1 - losses.shape[1]
        return np.pad(losses, ((0, 0), (0, missing)), constant_values=np.nan)


def _rolled(cache: GraftCache) -> list[TensorTree | None]:
    """The states of the memories, of which each row has that of the next one."""
    return [None if state is None else state.map(lambda t: t.roll(-1, 0)) for state in cache.memories]
