"""The fused path, `backend="triton"`. Triton itself is imported at the first call, not here."""

from titanslab.memory.kernels.op import fused
from titanslab.memory.kernels.plan import supported

__all__ = ["fused", "supported"]
