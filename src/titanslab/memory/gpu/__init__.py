"""The fused path, `backend="triton"`. Importing it does not import Triton; the first call does."""

from titanslab.memory.gpu.op import fused

__all__ = ["fused"]
