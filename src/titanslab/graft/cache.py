"""`GraftCache`: the keys and values of the base and the states of the memories, one object for `generate()`."""

import copy
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from titanslab.graft import cache_file
from titanslab.graft.states import StateLayer
from titanslab.graft.window import (
    KNOWN,
    PLAIN,
    Slots,
    Step,
    WindowLayer,
    is_held,
    is_ready,
    join,
    kept_slots,
    masks,
    number,
    refuse_ready_masks,
)
from titanslab.memory.state import TensorTree

if TYPE_CHECKING:
    from titanslab.graft.handle import Graft


class GraftCache(Cache):
    """Keys, values and memories of a grafted model after some tokens; `model.graft.cache()` makes an empty one.

    With a window, its size does not change after the window is full. No call writes a tensor in place, so that
    `fork()` copies none. `learn` and `write_scale` may be set at any time, and hold for the tokens read from then on.

    Args:
        graft: the `Graft` of the model, `model.graft`.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, graft: "Graft") -> None:
        super().__init__(layers=[])
        self._graft = weakref.ref(graft)
        self.learn = True
        self.write_scale = 1.0
        self.reset()

    @property
    def graft(self) -> "Graft":
        """The `Graft` to which the cache belongs; ValueError if its model no longer exists."""
        if (graft := self._graft()) is None:
            raise ValueError("the model of this cache no longer exists; keep a reference to the model")
        return graft

    def reset(self) -> None:
        """Empty the cache: the next token starts a text, and the memories start from their learned M_0."""
        graft = self.graft
        self.layers = graft.window.layers(graft.decoder.body.config)
        self.memories: list[TensorTree | None] = [None] * len(graft.memories)
        self.slots = Slots()
        self.columns = 0  # tokens read, padding included
        self.start = 0  # of them, those that `generate()` does not know
        self.rows = -1
        self._step: tuple[Step, int, Tensor] | None = None  # of the call at work: its tokens, their number, what stays

    def __repr__(self) -> str:
        return f"GraftCache(batch_size={self.rows}, seq_length={self.columns}, memories={len(self.memories)})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a GraftCache belongs to a model of this process; save(path) writes it to a file")

    @property
    def batch_size(self) -> int:
        """Number of rows, -1 while the cache is empty."""
        return self.rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far, padding included; after `continued()` those read since."""
        return self.columns - (0 if self._step else self.start)

    get_query_offset = get_seq_length

    def crop(self, tokens_to_remove: int) -> NoReturn:
        raise NotImplementedError(
            "a memory cannot unlearn tokens, so a GraftCache cannot be cropped; fork() it before tokens you may drop"
        )

    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors."""
        found = {f"slots.{name}": getattr(self.slots, name) for name in Slots.tensors}
        for i, layer in enumerate(self.layers):
            if is_held(layer):
                held: Any = layer
                found |= {f"layers.{i}.keys": held.keys, f"layers.{i}.values": held.values}
            elif isinstance(layer, StateLayer):
                found |= {f"layers.{i}.{name}": tensor for name, tensor in layer.tensors().items()}
        for i, state in enumerate(self.memories):
            if state is not None:
                found |= {f"memories.{i}.{name}": tensor for name, tensor in state.tensors().items()}
        return found

    def fork(self) -> "GraftCache":
        """An independent cache of the same content; no tensor is copied."""
        new = GraftCache(self.graft)
        new.__dict__.update(
            self.__dict__,
            layers=[_copied(layer) for layer in self.layers],
            memories=list(self.memories),
            slots=self.slots.copy(),
        )
        return new

    __copy__ = fork

    def continued(self) -> "GraftCache":
        """A fork for `generate()` with a prompt of new tokens alone.

        Hugging Face expects the whole text as a prompt, cached tokens included, and cuts off as many tokens as the
        cache has counted. The fork counts from here on. Its content is that of this cache.
        """
        new = self.fork()
        new.start = new.columns
        return new

    def detach(self) -> "GraftCache":
        """A fork without the graph, for truncated backpropagation."""
        new = self.fork()
        new._map(Tensor.detach)
        return new

    def memories_alone(self) -> "GraftCache":
        """A cache with the memories of this one and without a token for attention, whose positions begin at 0."""
        new = GraftCache(self.graft)
        new.memories, new.rows, new.learn, new.write_scale = (
            list(self.memories),
            self.rows,
            self.learn,
            self.write_scale,
        )
        return new

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes a copy of the former row `indices[i]`."""

        def fn(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, indices.to(tensor.device))

        self._map(fn)
        for layer in self.layers:
            if type(layer) not in KNOWN:
                layer.reorder_cache(indices)  # type: ignore[arg-type]
        for name in Slots.tensors:
            tensor = getattr(self.slots, name)
            if tensor.shape[0] > 1:
                setattr(self.slots, name, fn(tensor))
        self.rows = len(indices)

    reorder_cache = batch_select_indices  # type: ignore[assignment]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self.batch_select_indices(torch.arange(self.rows).repeat_interleave(repeats))

    def _map(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply `fn` to the tensors of layers and memories."""
        self.memories = [None if state is None else state.map(fn) for state in self.memories]
        for layer in self.layers:
            if type(layer) in PLAIN and is_held(layer):
                held: Any = layer
                held.keys, held.values = fn(held.keys), fn(held.values)
            elif isinstance(layer, StateLayer):
                layer.map(fn)

    def save(self, path: str | os.PathLike[str], model: Any = None, notes: dict[str, Any] | None = None) -> None:
        """Write the cache to a safetensors file, whole or not at all.

        The header names the base and the adapter by hashes, the layers, the dtype and the number of tokens read. It
        holds no text. A checksum covers tensors and header.

        Args:
            path: file to write; replaced if it exists.
            model: not needed; other caches of this library take it here.
            notes: JSON values to keep in the header.

        Raises:
            ValueError: an empty cache, a path that is no file, or notes that are no JSON values.
            FloatingPointError: the cache holds numbers that are not finite; nothing is written.
        """
        cache_file.save(self, path, notes)

    @staticmethod
    def header(path: str | os.PathLike[str]) -> cache_file.GraftCacheHeader:
        """The header of a file, without its tensors; errors as in `load`."""
        return cache_file.read(path, tensors=False)[0]

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any) -> Self:
        """Read a cache written by `save`, for the grafted `model`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a cache, cut short, damaged, or written by another base or with another adapter.
        """
        cache = cls(model.graft)
        cache_file.load(cache, path)
        return cache

    def check(self, graft: "Graft", batch: int) -> None:
        """ValueError unless the cache belongs to the model and has as many rows as the call."""
        if self._graft() is not graft:
            raise ValueError("the cache belongs to another grafted model; give one of model.graft.cache()")
        if self._step is not None:
            raise ValueError("a call with this cache failed half-way; fork() a cache before a call that may fail")
        if self.rows not in (-1, batch):
            raise ValueError(
                f"the cache holds {self.rows} rows, the call has {batch}; batch_repeat_interleave(n) repeats its rows"
            )

    def begin(self, given: dict[str, Any], mask: Tensor | None, tokens: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """Prepare a call with the arguments `given` of the body; returns those with which it is called.

        `mask [B,T]` are the real ones among the call's `tokens [B,T,...]`, None = all of them.
        """
        graft, slots, (batch, count) = self.graft, self.slots, tokens.shape[:2]
        window = graft.window
        if self.columns == 0:
            self.slots = slots = Slots(tokens.device)
        own = number(mask, count, slots.seen)
        index = join(slots.index, own)
        tail = join(slots.tail, own)
        plain = window.size is None or (not slots.dropped and index.shape[1] <= window.kept + 1)
        position = given.get("position_ids")
        if self.start or position is None or position.dim() != 2:
            position = None
            if self.start or not plain:
                steps = (
                    torch.arange(count, device=tokens.device)[None] if mask is None else (mask.cumsum(1) - 1).clamp(0)
                )
                position = slots.position[:, None] + steps
        step = Step(index, own, tail, position, plain)
        given = {**given}
        if plain:
            self._plain(given, mask, step)
        else:
            assert position is not None
            refuse_ready_masks(given)
            if window.limit is not None and self.columns and slots.bound + count > window.limit:
                self._set_back(torch.full_like(slots.seen, count) if mask is None else mask.sum(1), count)
            given["position_ids"] = position - slots.shift[:, None]
            full = count == 1 and index.shape[0] == 1 and not any(window.own)
            given["attention_mask"] = None if full else masks(window, step, batch, graft.decoder.body.config, dtype)
        kept = index
        if window.size is not None:
            keep, kept = kept_slots(index, window)
            for layer in self.layers:
                if isinstance(layer, WindowLayer):
                    layer.keep = keep
        self._step = step, count, kept
        self.rows = batch
        return given

    def _plain(self, given: dict[str, Any], mask: Tensor | None, step: Step) -> None:
        """Attention sees all that it would see in the base: the base makes the mask, and the positions if it can."""
        if step.position is not None:
            given["position_ids"] = step.position
        attention_mask = given.get("attention_mask")
        if is_ready(attention_mask) and not self.start:
            return
        refuse_ready_masks(given)
        if attention_mask is not None and attention_mask.shape[1] == step.index.shape[1]:
            return  # the base's own way, bit by bit
        if attention_mask is not None or self.start or step.index.shape[0] > 1:
            real = step.index >= 0  # padding of earlier calls stays invisible
            padded = real.shape[0] > 1 and not bool(real.all())
            given["attention_mask"] = real.to(torch.int64) if padded else None

    def _set_back(self, coming: Tensor, count: int) -> None:
        """Set back the positions of rows whose `coming` tokens (at most `count`) would go beyond those of the base.

        They go back to the fewest that the kept tokens need, and the keys are turned accordingly.

        Raises:
            ValueError: the call is too long, or the base has learned positions.
        """
        window, slots = self.graft.window, self.slots
        assert window.limit is not None
        used = slots.position - slots.shift
        beyond = used + coming > window.limit
        if bool(beyond.any()):
            if window.rotary is None:
                raise ValueError(
                    f"the base has {window.limit} learned positions and the text is longer; a window moves on only in "
                    "a base with rotary positions"
                )
            if window.kept + count > window.limit:
                raise ValueError(
                    f"a call of {count} tokens does not fit: the base has {window.limit} positions and {window.kept} "
                    f"tokens are in its window; read at most {window.limit - window.kept} tokens at a time"
                )
            delta = (used - (slots.index >= 0).sum(1)).clamp(min=0) * beyond
            moved = (slots.index >= window.sinks)[:, None, :, None]
            for i, layer in enumerate(self.layers):
                if isinstance(layer, StateLayer):
                    continue
                held: Any = layer
                turned = window.rotary.back(held.keys, i, delta)
                held.keys = torch.where(moved, turned, held.keys) if isinstance(layer, WindowLayer) else turned
            slots.shift = slots.shift + delta
            used = slots.position - slots.shift
        slots.bound = int(used.max())

    def end(self, mask: Tensor | None, failed: bool) -> None:
        """The call has ended; one that failed, or failed before it began, leaves everything as it is."""
        if failed or self._step is None:
            return
        step, count, index = self._step
        self._step = None
        slots, window = self.slots, self.graft.window
        if step.position is None:
            slots.position = torch.full_like(slots.seen[:1], self.columns + count)
        else:
            last = step.position if mask is None else torch.where(mask, step.position, slots.position[:, None] - 1)
            slots.position = last.amax(1) + 1
        slots.bound += count
        slots.seen = slots.seen + (count if mask is None else mask.sum(1))
        slots.index = index
        if window.size is not None:
            slots.dropped |= index.shape[1] < step.index.shape[1]
            slots.tail = step.tail[:, -window.tail :] if window.tail else step.tail[:, :0]
        self.columns += count


def _copied(layer: Any) -> Any:
    """A layer with the same tensors, or with copies of those that a call writes in place."""
    if isinstance(layer, StateLayer):
        return layer.copy()
    return copy.copy(layer) if type(layer) in PLAIN else copy.deepcopy(layer)
