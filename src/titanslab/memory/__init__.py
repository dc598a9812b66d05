"""The neural long-term memory, torch alone (paper §3). Names load when first used."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titanslab.memory.backends import choose_backend
    from titanslab.memory.config import MemoryConfig
    from titanslab.memory.layer import NeuralMemory
    from titanslab.memory.network import MemoryNetwork, MemoryParams
    from titanslab.memory.op import neural_memory
    from titanslab.memory.state import MemoryState, NeuralMemoryState
    from titanslab.memory.write_price import mean_write

_LAZY = {
    "backends": ("choose_backend",),
    "config": ("MemoryConfig",),
    "layer": ("NeuralMemory",),
    "network": ("MemoryNetwork", "MemoryParams"),
    "op": ("neural_memory",),
    "state": ("MemoryState", "NeuralMemoryState"),
    "write_price": ("mean_write",),
}

__all__ = [
    "MemoryConfig",
    "MemoryNetwork",
    "MemoryParams",
    "MemoryState",
    "NeuralMemory",
    "NeuralMemoryState",
    "choose_backend",
    "mean_write",
    "neural_memory",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
