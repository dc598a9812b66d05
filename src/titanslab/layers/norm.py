"""Root-mean-square norm with its statistics in float32 or float64."""

import torch
from torch import Tensor, nn

from titanslab.memory.norms import rms_norm


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension, in float32 at least, returned in the dtype of `x`."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64):
            return rms_norm(x, self.weight, self.eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        return rms_norm(x.to(wide), self.weight.to(wide), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
