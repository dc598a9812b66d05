"""The fused path, `backend="triton"`. Triton itself is imported at the first call, not here."""

from titanslab.memory.gpu.op import fused

__all__ = ["fused"]
