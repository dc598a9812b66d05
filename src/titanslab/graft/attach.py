"""`graft` adds memories to a pretrained model, `ungraft` takes them away."""

from typing import Any, TypeVar

import torch
from torch import nn

from titanslab.graft.config import GraftConfig, OptionError
from titanslab.graft.context import ContextMemory
from titanslab.graft.handle import Graft, graft_of
from titanslab.graft.memory import GraftedMemory
from titanslab.graft.structure import find_decoder
from titanslab.graft.window import find_window

Model = TypeVar("Model", bound=nn.Module)


def graft(model: Model, config: GraftConfig | None = None) -> Model:
    """Add a memory beside the attention of the chosen layers of a decoder, and return the same model.

    The class of the model stays. Its outputs are those of the base, bit by bit, until the memories are trained. The
    parameters of the base are frozen and those of the memories are trainable, in float32. A model that PEFT has
    wrapped keeps its adapters trainable.

    Args:
        model: a decoder of transformers, or one of the same form, or a PEFT model around one.
        config: a `GraftConfig`; None = its defaults.

    Raises:
        ValueError: the model has a graft already, is no decoder, or does not have the layers that `config` names.
    """
    config = config or GraftConfig()
    if hasattr(model, "graft"):
        raise ValueError(f"{type(model).__name__} has a graft already; titanslab.graft.ungraft(model) takes it away")
    decoder = find_decoder(model)
    if isinstance(config.layers, str):
        attending = [n for n, attention in enumerate(decoder.attentions) if attention is not None]
        layers = tuple(attending[place] for place in config.chosen(len(attending)))
    else:
        layers = config.chosen(len(decoder.attentions))
    if missing := [n for n in layers if decoder.attentions[n] is None]:
        raise OptionError("layers", f"has the number {missing[0]}, a layer of the base without attention")
    config.memory.width(decoder.hidden_size)
    if not hasattr(model, "peft_config"):
        model.requires_grad_(False)
    handle = Graft(model, decoder, config, layers, find_window(decoder, config))
    kind = ContextMemory if config.placement == "mac" else GraftedMemory
    for place, layer in enumerate(layers):
        memory = kind(decoder.hidden_size, config.memory, handle, place)
        like = next(handle.attention(layer).parameters())
        handle.memories.append(memory.to(like.device, torch.float32).train(model.training))
    handle.attach()
    for part in _wearers(model):
        part.graft = handle
        part.save_pretrained = handle.save_pretrained
        part.disable_adapter = handle.disable_adapter
        part._is_stateful = True  # generate() then offers no method that takes tokens back
        part._supports_default_dynamic_cache = _no_default_cache
    return model


def ungraft(model: Model) -> Model:
    """Take the memories away and return the same model, which is its base again."""
    graft_of(model).detach()
    for part in _wearers(model):
        for name in ("graft", "save_pretrained", "disable_adapter", "_is_stateful", "_supports_default_dynamic_cache"):
            part.__dict__.pop(name, None)
    return model


def _no_default_cache() -> bool:
    """`generate()` leaves the first cache to the model."""
    return False


def _wearers(model: nn.Module) -> list[Any]:
    """The model and the model inside PEFT's wrapper."""
    inner = getattr(model, "get_base_model", None)
    return [model] if inner is None else [model, inner()]
