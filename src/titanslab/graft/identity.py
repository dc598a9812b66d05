"""Hashes of a base and of what was added to it, by which files of a graft know their model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from titanslab.files import fingerprint
from titanslab.graft.structure import NAME
from titanslab.memory.config import NOT_IN_THE_STATE
from titanslab.tensor_files import weights_hash

if TYPE_CHECKING:
    from titanslab.graft.handle import Graft

WRAPPED = "base_layer"  # where PEFT keeps the module that it wraps


def base_hash(body: nn.Module) -> str:
    """The hash of the base's weights, the same with and without memories and adapters of PEFT; the head is left out."""
    return weights_hash(_base_parameters(body))


def _base_parameters(body: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the base under the names that they have without a wrapper."""
    wrapped = _wrapped(body)
    for name, parameter in body.named_parameters():
        if f".{NAME}." not in f".{name}" and not _is_adapter(name, wrapped):
            yield name.replace(f".{WRAPPED}.", "."), parameter


def has_adapters(body: nn.Module) -> bool:
    """Whether adapters of PEFT are in the base."""
    return bool(_wrapped(body))


def _wrapped(body: nn.Module) -> list[str]:
    """The names of modules that PEFT has put in place of others."""
    return [f"{name}." for name, module in body.named_modules() if WRAPPED in dict(module.named_children())]


def _is_adapter(name: str, wrapped: list[str]) -> bool:
    """Whether a parameter belongs to an adapter: it is in a wrapping module, and not in what that module wraps."""
    return any(name.startswith(place) and not name[len(place) :].startswith(f"{WRAPPED}.") for place in wrapped)


def adapter_hash(graft: "Graft") -> str:
    """The hash of what was added to the base: the memories with their options, the window, and adapters of PEFT."""
    body = graft.decoder.body
    wrapped = _wrapped(body)
    added = [(name, p) for name, p in body.named_parameters() if _is_adapter(name, wrapped)]
    for layer, memory in zip(graft.layers, graft.memories, strict=True):
        added += [(f"{layer}.{name}", parameter) for name, parameter in memory.named_parameters()]
    options = graft.config.to_dict() | {"layers": list(graft.layers)}
    options["memory"] = {name: value for name, value in options["memory"].items() if name not in NOT_IN_THE_STATE}
    return fingerprint({"weights": weights_hash(added), "options": options})
