"""The parts of a base model that a graft needs, found by structure: no class of transformers is named."""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

CACHE_NAMES = ("cache", "past_key_values")  # transformers renamed the argument in 5.24
INPUT = "hidden_states"
NAME = "titans_memory"  # an attention module has its memory under this name


@dataclass(frozen=True)
class Decoder:
    """The decoder of a base.

    Args:
        body: the module that owns the layers; masks, positions and the cache are made in its `forward`.
        attentions: the attention module of each layer, None for a layer without one.
        names: the arguments of the body's `forward`, in order.
        passes_on: whether the body and the layers take further arguments, which arrive at each attention module.
        cache_name: the argument that takes the cache.
        hidden_size: width of the layers' inputs.
    """

    body: nn.Module
    attentions: tuple[nn.Module | None, ...]
    names: tuple[str, ...]
    passes_on: bool
    cache_name: str
    hidden_size: int


def find_decoder(model: nn.Module) -> Decoder:
    """The decoder in `model`, which may be wrapped, for example by PEFT.

    Raises:
        ValueError: no list of decoder layers with attention, or the body has no argument for masks and a cache.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} has an encoder and a decoder; graft() needs a decoder alone")
    found: list[tuple[int, nn.Module, nn.ModuleList]] = []
    for module in _text_part(model).modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and any(attention_of(layer) is not None for layer in child):
                found.append((len(child), module, child))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no list of layers with an attention module; graft() needs a decoder"
        )
    _, body, layers = max(found, key=lambda item: item[0])
    attentions = tuple(attention_of(layer) for layer in layers)
    if any(attention is not None and _is_cross(attention) for layer in layers for attention in layer.children()):
        raise ValueError(f"{type(body).__name__} has cross-attention; graft() takes decoders that read one text")
    if any(getattr(m, "is_causal", True) is False for a in attentions if a is not None for m in a.modules()):
        raise ValueError(f"{type(body).__name__} attends to later tokens too; graft() needs a decoder")
    parameters = inspect.signature(body.forward).parameters
    names = tuple(parameters)
    passes_on = None not in attentions and all(_takes_more(module) for module in (body, *layers))
    cache_name = next((name for name in CACHE_NAMES if name in names), None)
    if cache_name is None or "attention_mask" not in names:
        raise ValueError(
            f"{type(body).__name__}.forward has no argument for a cache and a mask (attention_mask and "
            f"{' or '.join(CACHE_NAMES)}); graft() needs a decoder in the form of transformers"
        )
    if not {"input_ids", "inputs_embeds"} & set(names):
        raise ValueError(
            f"{type(body).__name__}.forward is given hidden states, and no tokens; graft() needs a decoder in the form "
            "of transformers, in which one module has the embedding and the layers"
        )
    config: Any = getattr(body, "config", getattr(model, "config", None))
    return Decoder(body, attentions, names, passes_on, cache_name, int(config.hidden_size))


def _text_part(model: nn.Module) -> nn.Module:
    """The language model inside a model that may read pictures too."""
    get_decoder = getattr(model, "get_decoder", None)
    part = get_decoder() if callable(get_decoder) else None
    return part if isinstance(part, nn.Module) else model


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The child of a decoder layer that attends to other tokens, None if it has none.

    It has "attn" or "attention" in the name of its class or of its place, its `forward` takes a mask or a cache, and
    it is no cross-attention.
    """
    for name, child in layer.named_children():
        words = f"{name} {type(child).__name__}".lower()
        if ("attn" not in words and "attention" not in words) or _is_cross(child) or "linear" in words:
            continue
        taken = set(inspect.signature(child.forward).parameters)
        if taken & {"attention_mask", "layer_past", *CACHE_NAMES}:
            return child
    return None


def _takes_more(module: nn.Module) -> bool:
    """Whether a module's `forward` has arguments `**kwargs`."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())


def _is_cross(module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False))


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """The arguments of a module's `forward`, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states `[B,T,hidden_size]` among the arguments of an attention module."""
    return kwargs[INPUT] if INPUT in kwargs else args[0]


def with_input(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention module with other hidden states."""
    return (args, {**kwargs, INPUT: x}) if INPUT in kwargs else ((x, *args[1:]), kwargs)
