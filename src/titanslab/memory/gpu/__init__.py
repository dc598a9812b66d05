"""The fused path, `backend="triton"`. Triton itself is imported at the first call, not here."""

from titanslab.memory.gpu.op import fused
from titanslab.memory.gpu.verdict import take_fused, tried

__all__ = ["fused", "take_fused", "tried"]
