"""Layers beside the memory: attention with a prefix and a window, norms, MLP, rotary positions, gates."""

from titanslab.layers.attention import Attention
from titanslab.layers.gate import MemoryGate
from titanslab.layers.linear_cross_entropy import linear_cross_entropy
from titanslab.layers.mlp import SwiGLU
from titanslab.layers.rotary import apply_rotary, rotary_tables
from titanslab.memory.norms import RMSNorm

__all__ = ["Attention", "MemoryGate", "RMSNorm", "SwiGLU", "apply_rotary", "linear_cross_entropy", "rotary_tables"]
