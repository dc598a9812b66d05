"""The neural long-term memory, torch alone (paper §3)."""

from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.op import neural_memory
from titanslab.memory.state import MemoryState

__all__ = ["MemoryNetwork", "MemoryParams", "MemoryState", "neural_memory"]
