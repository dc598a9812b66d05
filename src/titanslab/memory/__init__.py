"""The neural long-term memory, torch alone (paper §3)."""

from titanslab.memory.backends import choose_backend
from titanslab.memory.config import MemoryConfig
from titanslab.memory.layer import NeuralMemory
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.op import neural_memory
from titanslab.memory.state import MemoryState, NeuralMemoryState
from titanslab.memory.write_price import mean_write

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
