"""The gate that combines the outputs of attention and memory (paper eqs. 25 and 28)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.memory.config import check_choice
from titanslab.memory.norms import RMSNorm

GATE_TYPES = ("mix", "sigmoid", "silu")


class MemoryGate(nn.Module):
    """Gate of an attention branch `y` and a memory branch `m`, both `[..., hidden_size]`.

    The paper normalises both with learned vectors and applies a non-linearity; the formula is left open. With
    `a = RMSNorm(y)` and `b = RMSNorm(m)`, each with its own vector, `gate_type` chooses one of

    - `"mix"`: `g a + (1 - g) b` with `g = sigmoid(gate_proj(a))`; each branch can pass without the other,
    - `"sigmoid"`: `a * sigmoid(b)`; the memory scales attention's channels,
    - `"silu"`: `a * silu(b)`; where the memory's output is zero, so is the result.
    """

    def __init__(self, hidden_size: int, gate_type: str = "mix", eps: float = 1e-6) -> None:
        super().__init__()
        check_choice("gate_type", gate_type, GATE_TYPES)
        self.gate_type = gate_type
        self.y_norm = RMSNorm(hidden_size, eps)
        self.m_norm = RMSNorm(hidden_size, eps)
        self.gate_proj = nn.Linear(hidden_size, hidden_size, bias=False) if gate_type == "mix" else None

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        a, b = self.y_norm(y), self.m_norm(m)
        if self.gate_proj is not None:
            return b + torch.sigmoid(self.gate_proj(a)) * (a - b)
        return a * (torch.sigmoid(b) if self.gate_type == "sigmoid" else F.silu(b))
