"""The window of a graft: which keys attention sees and keeps, and the positions of the tokens that come."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from titanslab.graft.config import GraftConfig, OptionError
from titanslab.graft.rotary import Rotary, find_rotary
from titanslab.graft.states import STATES_ARE_KEPT, StateLayer, has_states_alone, state_layer
from titanslab.graft.structure import Decoder

ATTENTIONS = ("eager", "sdpa", "flex_attention")  # implementations that take any mask
KINDS = {"full_attention", "sliding_attention", "conv", "linear_attention"}  # of layers beside which a window moves
STATES = 0  # in the place of a layer's window: the layer has states, and no attention


class WindowLayer(DynamicLayer):
    """Keys and values of one layer, of which `keep` says which ones stay after a call.

    `keep` is int64 `[B, K]` or `[K]`, slots among the old and the new ones; None = all.
    """

    is_croppable = False
    keep: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values `[B,H,T,D]`; returns all that the call's attention may see."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.keep is not None:
            self.keys, self.values = (take(t, self.keep) for t in (keys, values))
        return keys, values


# layers whose calls write no tensor in place
PLAIN = (DynamicLayer, DynamicSlidingWindowLayer, WindowLayer)
# layers whose rows can be taken and which a file can hold; transformers has others
KNOWN = (*PLAIN, StateLayer)


def take(x: Tensor, keep: Tensor) -> Tensor:
    """The slots `keep [B, K]` or `[K]` of `x [B,H,N,D]`."""
    keep = keep.to(x.device)  # layers may be on several devices
    if keep.dim() == 1:
        return x.index_select(2, keep)
    return x.gather(2, keep[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


@dataclass(frozen=True)
class Window:
    """How far the attention of a grafted model reaches.

    Args:
        size: tokens in the window; None = attention is the base's.
        sinks: tokens at a row's start that stay visible.
        own: for each layer, the window that it has in the base, None for full attention, `STATES` without attention.
        limit: positions of the base; None = unlimited.
        rotary: rotary positions; None = the base has learned ones, or `size` is None.
    """

    size: int | None
    sinks: int
    own: tuple[int | None, ...]
    limit: int | None
    rotary: Rotary | None

    @property
    def kept(self) -> int:
        """Slots that stay between calls in a layer with the window."""
        assert self.size is not None
        return self.sinks + self.size - 1

    @property
    def tail(self) -> int:
        """Slots of the widest layer that keeps a window of its own."""
        return max((own - 1 for own in self.own if own and not self.moves(own)), default=0)

    def moves(self, own: int | None) -> bool:
        """Whether a layer of the base with the window `own` gets this window; a narrower one stays."""
        return self.size is not None and (own is None or own > self.size)

    def layers(self, config: Any) -> list[Any]:
        """New layers of a cache."""
        found = [state_layer(layer) for layer in DynamicCache(config=config).layers]
        return (
            found
            if self.size is None
            else [WindowLayer() if self.moves(own) else layer for own, layer in zip(self.own, found, strict=True)]
        )


def find_window(decoder: Decoder, config: GraftConfig) -> Window:
    """The window of a graft.

    Raises:
        OptionError: the base has layers, or positions, with which a window cannot move.
    """
    base: Any = decoder.body.config
    layers: list[Any] = DynamicCache(config=base).layers
    own = tuple(STATES if has_states_alone(layer) else getattr(layer, "sliding_window", None) for layer in layers)
    if config.window_size is None:
        return Window(None, 0, own, None, None)
    others = [layer for layer, width in zip(layers, own, strict=True) if width != STATES]
    kind = next((type(n).__name__ for n in others if type(n) not in (DynamicLayer, DynamicSlidingWindowLayer)), "")
    kinds = set(getattr(base, "layer_types", None) or ()) - KINDS
    if kind or kinds or [a is None for a in decoder.attentions] != [width == STATES for width in own]:
        newer = "" if STATES_ARE_KEPT else ", or transformers from 5.17 on"
        raise OptionError(
            "window_size",
            "works with layers of attention, short convolutions and linear recurrences alone, and the base has "
            f"{kind or kinds or 'others'}; use None{newer}",
        )
    if "position_ids" not in decoder.names:
        raise OptionError("window_size", "needs a base that takes position_ids, and this one does not; use None")
    if getattr(base, "alibi", False):
        raise OptionError(
            "window_size", "needs a base with rotary or learned positions, and this one has ALiBi; use None"
        )
    if any(b.dim() == 4 and b.shape[-1] == b.shape[-2] > 1 for m in decoder.attentions if m for b in m.buffers()):
        raise OptionError(
            "window_size", "needs attention that is given its mask, and this base makes its own; use None"
        )
    limit = getattr(base, "max_position_embeddings", None)
    kept = config.window_size + config.num_sink_tokens
    if limit is not None and kept >= limit:
        raise OptionError(
            "window_size",
            f"and num_sink_tokens are {kept} tokens together, and the base has {limit} positions; use less",
        )
    window = Window(config.window_size, config.num_sink_tokens, own, limit, find_rotary(decoder))
    if window.rotary is None and not _learned(decoder, limit):
        raise OptionError(
            "window_size", "needs a base with rotary or learned positions, and this one has others; use None"
        )
    return window if any(window.moves(each) for each in own) else Window(None, 0, own, None, None)


def _learned(decoder: Decoder, limit: int | None) -> bool:
    """Whether the base has a table of learned positions; some tables have a few entries more than positions."""
    tables = [m for m in decoder.body.children() if isinstance(m, nn.Embedding)]
    return limit is not None and any(limit <= table.num_embeddings <= limit + 8 for table in tables)


class Slots:
    """What stands in the slots of a cache, and where the next token stands. The first dimension is rows or 1.

    Attributes:
        index: int64 `[B or 1, N]`, the number of the token in each slot, counted in its row from 0; -1 at padding.
        tail: the same for the last columns, which layers with a narrower window of their own keep.
        seen: int64 `[B or 1]`, tokens of the row.
        position: int64 `[B or 1]`, position of the next token, as the base counts.
        shift: int64 `[B or 1]`, by how much positions have been set back.
        bound: an upper bound of the next position in use, known without a look at a tensor.
        dropped: whether a slot has been left out.
    """

    tensors = ("index", "tail", "seen", "position", "shift")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.index = torch.empty(1, 0, dtype=torch.int64, device=device)
        self.tail = self.index
        self.seen = self.position = self.shift = torch.zeros(1, dtype=torch.int64, device=device)
        self.bound, self.dropped = 0, False

    def copy(self) -> "Slots":
        """Another object with the same tensors, of which no call changes one in place."""
        new = Slots()
        new.__dict__.update(self.__dict__)
        return new


@dataclass(frozen=True)
class Step:
    """One call's tokens among the slots.

    Args:
        index: int64 `[B or 1, N + T]`, old and new slots.
        own: int64 `[B or 1, T]`, the call's.
        tail: as `index`, for the layers with a window of their own.
        position: int64 `[B or 1, T]`, positions as the base counts; None = the base counts them.
        plain: attention sees all that it would see in the base.
    """

    index: Tensor
    own: Tensor
    tail: Tensor
    position: Tensor | None
    plain: bool


def number(mask: Tensor | None, tokens: int, seen: Tensor) -> Tensor:
    """The numbers `[B or 1, T]` of a call's tokens in their rows, -1 at padding."""
    if mask is None:
        return seen[:, None] + torch.arange(tokens, device=seen.device)
    return torch.where(mask, seen[:, None] + mask.cumsum(1) - 1, -1)


def join(a: Tensor, b: Tensor) -> Tensor:
    """Columns of `a` before those of `b`, where either may have one row for all."""
    rows = max(a.shape[0], b.shape[0])
    return torch.cat((a.expand(rows, -1), b.expand(rows, -1)), 1)


def visible(query: Tensor, key: Tensor, size: int, sinks: int) -> Tensor:
    """Which slots each token sees, bool `[B or 1, T, N]`; the last slots are the call's own tokens."""
    q, k = query[:, :, None], key[:, None, :]
    seen = (k >= 0) & (k <= q) & ((q - k < size) | (k < sinks))
    own = torch.arange(query.shape[1], device=query.device)
    seen[:, own, key.shape[1] - query.shape[1] + own] = True  # a row of padding alone would have no softmax
    return seen


def as_mask(seen: Tensor, batch: int, config: Any, dtype: torch.dtype) -> Any:
    """The mask in the form of the base's attention implementation."""
    kind = config._attn_implementation
    if kind not in ATTENTIONS:
        raise ValueError(f"attn_implementation {kind!r} takes no window with sinks; use one of {', '.join(ATTENTIONS)}")

    def at(row: Any, head: Any, query: Any, key: Any) -> Any:
        return seen[row % seen.shape[0], query, key]

    sizes: dict[str, Any] = {"batch_size": batch, "q_length": seen.shape[1], "kv_length": seen.shape[2]}
    return ALL_MASK_ATTENTION_FUNCTIONS[kind](
        **sizes, mask_function=at, allow_is_causal_skip=False, dtype=dtype, device=seen.device, config=config
    )


def masks(window: Window, step: Step, batch: int, config: Any, dtype: torch.dtype) -> Any:
    """The attention mask of a call beyond the plain case, one for all layers or one for each kind of layer."""
    assert window.size is not None
    made: dict[int | None, Any] = {}
    for own in set(window.own):
        if own == STATES:
            made[own] = padding(step.own, batch)
            continue
        moves = window.moves(own)
        size = window.size if moves else own
        assert size is not None
        slots = step.index if moves else step.tail[:, -(size - 1 + step.own.shape[1]) :]
        made[own] = as_mask(visible(step.own, slots, size, window.sinks if moves else 0), batch, config, dtype)
    if len(made) == 1:
        return made.popitem()[1]
    return {kind: made[own] for kind, own in zip(config.layer_types, window.own, strict=True)}


def padding(own: Tensor, batch: int) -> Tensor | None:
    """The mask `[B,T]` of a layer with states, None where all of a call's tokens are real."""
    real = own >= 0
    return None if bool(real.all()) else real.expand(batch, -1).to(torch.int64)


def kept_slots(index: Tensor, window: Window) -> tuple[Tensor | None, Tensor]:
    """Which slots stay after a call, as `WindowLayer.keep`, and their index `[B or 1, K]`."""
    kept, sinks = window.kept, window.sinks
    count = index.shape[1]
    if count <= kept:
        return None, index
    if index.shape[0] == 1:  # rows without padding
        slots = torch.arange(count, device=index.device)
        keep = torch.cat((slots[:sinks], slots[count - (kept - sinks) :]))
        return keep, index[:, keep]
    # a stable sort moves padding to the front; the sinks come before the rest
    tokens = (index >= 0).sum(1, keepdim=True)
    newest = index.amax(1, keepdim=True)
    stays = (index >= 0) & ((index < sinks) | (index > newest - (kept - sinks)) | (tokens <= kept))
    order = stays.to(torch.uint8).argsort(dim=1, stable=True)[:, -kept:]
    chosen = index.gather(1, order)
    return order, torch.where(stays.gather(1, order), chosen, -1)


def is_ready(mask: Any) -> bool:
    """Whether an attention mask is more than a row of 0 and 1 for each text, as a model with pictures makes it."""
    return mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2)


def refuse_ready_masks(given: dict[str, Any]) -> None:
    """ValueError where the arguments of the body hold such a mask, which would have to be replaced."""
    if is_ready(given.get("attention_mask")):
        raise ValueError(
            "the model gives its decoder masks that are made already, and neither a window nor continued() can act on "
            "them; use window_size=None and whole texts as prompts"
        )


def is_held(layer: Any) -> bool:
    """Whether a layer of a cache holds keys."""
    return isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.keys.numel() > 0
