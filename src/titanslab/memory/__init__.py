"""The neural long-term memory, torch alone (paper §3)."""

from titanslab.memory.layer import NeuralMemory
from titanslab.memory.layer_state import NeuralMemoryState
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.op import choose_backend, neural_memory
from titanslab.memory.state import MemoryState
from titanslab.memory.write_price import counting_writes, mean_write

__all__ = [
    "MemoryNetwork",
    "MemoryParams",
    "MemoryState",
    "NeuralMemory",
    "NeuralMemoryState",
    "choose_backend",
    "counting_writes",
    "mean_write",
    "neural_memory",
]
