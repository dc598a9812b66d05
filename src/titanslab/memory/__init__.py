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
    "MemoryConfig": "config",
    "MemoryNetwork": "network",
    "MemoryParams": "network",
    "MemoryState": "state",
    "NeuralMemory": "layer",
    "NeuralMemoryState": "state",
    "choose_backend": "backends",
    "mean_write": "write_price",
    "neural_memory": "op",
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
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
