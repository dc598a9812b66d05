"""Rotary positions of a base: its cached keys turned back by some positions, whichever layout the base has."""

import inspect
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from titanslab.graft.structure import Decoder

PROBE = 3, 11  # positions at which the keys of one token are compared


@dataclass(frozen=True)
class Layout:
    """Which components of a key form the pairs that are rotated, and where their angles stand in the base's tables.

    Args:
        pairs: components 2j and 2j + 1 form a pair; else j and j + half of the width.
        table: the angles of the pairs are the first "half" of a table, "every" second entry, or "all" of it.
        last: the rotated components are the last ones of a key; else the first ones.
    """

    pairs: bool
    table: str
    last: bool

    def rotate(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The keys `[B,H,N,D]`, turned by the angles of the tables `[B or 1,1,W]`."""
        width = cos.shape[-1]
        part = {"half": slice(0, width // 2), "every": slice(0, width, 2), "all": slice(None)}[self.table]
        cos, sin = (t[:, None, :, part] for t in (cos, sin))
        size = 2 * cos.shape[-1]
        start = keys.shape[-1] - size if self.last else 0
        before, turned, after = keys.split((start, size, keys.shape[-1] - size - start), -1)
        turned = turned.float()
        a, b = (turned[..., ::2], turned[..., 1::2]) if self.pairs else turned.chunk(2, -1)
        both = a * cos - b * sin, b * cos + a * sin
        joined = torch.stack(both, -1).flatten(-2) if self.pairs else torch.cat(both, -1)
        return torch.cat((before, joined.to(keys.dtype), after), -1)


LAYOUTS = tuple(Layout(*each) for each in product((False, True), ("half", "every", "all"), (False, True)))


@dataclass(frozen=True)
class Rotary:
    """Turns the keys of each layer.

    Args:
        module: the base's module that makes cosines and sines.
        kinds: for each layer, the further arguments of the module.
        layouts: for each layer, how its keys are rotated; None where they are not.
    """

    module: nn.Module
    kinds: tuple[tuple[Any, ...], ...]
    layouts: tuple[Layout | None, ...] = ()

    def tables(self, layer: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[B,1,W]` of positions `[B,1]`, without the factor that some bases put on both."""
        like = torch.zeros(1, device=positions.device)
        cos, sin = self.module(like, positions, *self.kinds[layer])
        scale = self.module(like, torch.zeros_like(positions), *self.kinds[layer])[0]
        return cos / scale, sin / scale

    def back(self, keys: Tensor, layer: int, delta: Tensor) -> Tensor:
        """The keys `[B,H,N,D]` of a layer as they would be `delta [B or 1]` positions earlier."""
        layout = self.layouts[layer]
        return keys if layout is None else layout.rotate(keys, *self.tables(layer, -delta.to(keys.device)[:, None]))


def find_rotary(decoder: Decoder) -> Rotary | None:
    """The rotary positions of a decoder, None if it has none.

    Raises:
        ValueError: its keys change with the position in another way than each known layout would change them.
    """
    children = decoder.body.children()
    module = next((m for m in children if "position_ids" in inspect.signature(m.forward).parameters), None)
    if module is None or isinstance(module, nn.Embedding) or "rotary" not in type(module).__name__.lower():
        return None
    config: Any = decoder.body.config
    takes = inspect.signature(module.forward).parameters
    kinds: tuple[tuple[Any, ...], ...] = ((),) * len(decoder.attentions)
    if "layer_type" in takes:
        kinds = tuple((kind,) for kind in config.layer_types)
    rotary = Rotary(module, kinds)
    pairs = zip(*(_keys(decoder, position) for position in PROBE), strict=True)
    layouts = tuple(_layout(rotary, layer, *pair) for layer, pair in enumerate(pairs))
    return Rotary(module, kinds, layouts)


def _layout(rotary: Rotary, layer: int, first: Tensor | None, second: Tensor | None) -> Layout | None:
    """The layout of a layer, by its keys at two positions: those at the second, turned back, are those at the first."""
    if first is None or second is None:
        return None
    close = (1e-3 if first.dtype in (torch.float32, torch.float64) else 0.05) * first.abs().max()
    if (first - second).abs().max() <= close / 50:
        return None  # no positions in this layer
    tables = rotary.tables(layer, torch.tensor([[PROBE[0] - PROBE[1]]], device=first.device))
    for layout in LAYOUTS:
        fits = tables[0].shape[-1] * (2 if layout.table == "all" else 1) <= first.shape[-1]
        if fits and (layout.rotate(second, *tables) - first).abs().max() <= close:
            return layout
    raise ValueError(
        f"the keys of layer {layer} turn with their position in a form that graft() does not know, so that a window "
        "cannot move; use window_size=None"
    )


@torch.no_grad()
def _keys(decoder: Decoder, position: int) -> list[Tensor | None]:
    """The keys of each layer for one token at a position, which attends to itself alone; None without attention."""
    from transformers.cache_utils import DynamicCache

    body: Any = decoder.body
    modes = {m: m.training for m in body.modules()}
    device = next(body.parameters()).device
    cache: Any = DynamicCache(config=body.config)
    body.eval()
    try:
        given = {decoder.cache_name: cache, "position_ids": torch.full((1, 1), position, device=device)}
        body(input_ids=torch.ones((1, 1), dtype=torch.int64, device=device), use_cache=True, **given)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [getattr(layer, "keys", None) for layer in cache.layers]
