"""Rotary positions of a base: its cached keys turned back by some positions, whichever layout the base has."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from titanslab.graft.structure import Decoder

LAYOUTS = ("halves", "pairs", "compact")  # of the rotated components; "compact" = halves, with tables of half the width
PROBE = 3, 11  # positions at which the keys of one token are compared


@dataclass(frozen=True)
class Rotary:
    """Turns the keys of each layer.

    Args:
        module: the base's module that makes cosines and sines.
        layout: one of `LAYOUTS`.
        kinds: for each layer, the further arguments of the module.
    """

    module: nn.Module
    layout: str
    kinds: tuple[tuple[Any, ...], ...]

    def back(self, keys: Tensor, layer: int, delta: Tensor) -> Tensor:
        """The keys `[B,H,N,D]` of a layer as they would be `delta [B or 1]` positions earlier."""
        turn = -delta.to(keys.device)[:, None]
        cos, sin = self.module(keys.new_zeros(1, dtype=torch.float32), turn, *self.kinds[layer])
        scale = self.module(keys.new_zeros(1, dtype=torch.float32), torch.zeros_like(turn), *self.kinds[layer])[0]
        cos, sin = (t / scale for t in (cos, sin))
        width = cos.shape[-1] * (2 if self.layout == "compact" else 1)
        part = {"halves": slice(0, width // 2), "pairs": slice(0, width, 2), "compact": slice(None)}[self.layout]
        cos, sin = (t[:, None, :, part] for t in (cos, sin))
        turned, rest = keys[..., :width].float(), keys[..., width:]
        if self.layout == "pairs":
            a, b = turned[..., ::2], turned[..., 1::2]
            joined = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            joined = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((joined.to(keys.dtype), rest), -1)


def find_rotary(decoder: Decoder) -> Rotary | None:
    """The rotary positions of a decoder, None if it has none.

    Raises:
        ValueError: its keys change with the position in another way than each known layout would change them.
    """
    module = next(
        (m for m in decoder.body.children() if "position_ids" in inspect.signature(m.forward).parameters), None
    )
    if module is None or isinstance(module, nn.Embedding) or "rotary" not in type(module).__name__.lower():
        return None
    config: Any = decoder.body.config
    takes = inspect.signature(module.forward).parameters
    count = len(decoder.attentions)
    kinds = tuple((kind,) for kind in config.layer_types) if "layer_type" in takes else ((),) * count
    first, second = (_keys(decoder, position) for position in PROBE)
    delta = torch.tensor([PROBE[1] - PROBE[0]])
    close = 1e-3 if first[0].dtype in (torch.float32, torch.float64) else 0.05
    for layout in LAYOUTS:
        rotary = Rotary(module, layout, kinds)
        if all(_agree(rotary, layer, pair, delta, close) for layer, pair in enumerate(zip(first, second, strict=True))):
            return rotary
    raise ValueError(
        f"{type(decoder.body).__name__} has rotary positions in a form that graft() does not know, so that its window "
        "cannot move; use window_size=None"
    )


def _agree(rotary: Rotary, layer: int, pair: tuple[Tensor, Tensor], delta: Tensor, close: float) -> bool:
    """Whether the keys of a layer at the second position, turned back, are those at the first."""
    first, second = pair
    try:
        error = (rotary.back(second, layer, delta) - first).abs().max()
    except RuntimeError:  # tables of another width
        return False
    return bool(error <= close * first.abs().max())


@torch.no_grad()
def _keys(decoder: Decoder, position: int) -> list[Tensor]:
    """The keys of each layer for one token at a position; a single token attends to itself alone."""
    from transformers.cache_utils import DynamicCache

    body, modes = decoder.body, {m: m.training for m in decoder.body.modules()}
    device = next(body.parameters()).device
    cache: Any = DynamicCache()
    body.eval()
    try:
        given = {decoder.cache_name: cache, "position_ids": torch.full((1, 1), position, device=device)}
        body(input_ids=torch.ones((1, 1), dtype=torch.int64, device=device), use_cache=True, **given)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [layer.keys for layer in cache.layers]
