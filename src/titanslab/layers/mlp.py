"""SwiGLU, the MLP of a Llama-like block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.memory.norms import own_backward


class SwiGLU(nn.Module):
    """`down_proj(silu(gate_proj(x)) * up_proj(x))` on `[..., hidden_size]`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(_Gated.apply(gate, up) if own_backward(gate) else F.silu(gate) * up)


class _Gated(torch.autograd.Function):
    """`silu(gate) * up`; the backward pass computes `silu(gate)` again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative: PyTorch's silu_backward has none
            share = torch.sigmoid(gate)
            return dy * up * share * (1 + gate * (1 - share)), dy * gate * share
        return torch.ops.aten.silu_backward(dy * up, gate), dy * F.silu(gate)
