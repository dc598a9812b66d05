"""Rotary positions, exact at positions of ten million and more."""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[..., head_dim / 2]` of the rotary angles of `positions [...]`.

    `theta` is the base of the frequencies. The tables have the model's `dtype`, or float32 if it is narrower. Angles
    are computed in float64: in float32 a position beyond 10^6 times a frequency is wrong by a large part of a turn.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # mps has no float64
    steps = torch.arange(0, head_dim, 2, dtype=wide, device=positions.device) / head_dim
    angles = positions.to(wide).unsqueeze(-1) * theta**-steps
    out = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(out), angles.sin().to(out)


def apply_rotary(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate `x [B, H, T, D]` by tables of `[B or 1, T, D/2]`; the two halves of D form the pairs."""
    cos, sin = (table.unsqueeze(1) for table in tables)
    a, b = x.chunk(2, dim=-1)
    first, second = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
    return torch.cat((first, second), dim=-1).to(x.dtype)
