"""Rotary positions, exact at positions of ten million and more."""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles of `positions`.

    Angles are computed in float64: in float32 the product of a position beyond 10^6 and a frequency has an error of a
    large fraction of a turn.

    Args:
        positions: int64 `[...]`.
        head_dim: even width of a head.
        theta: base of the frequencies.
        dtype: dtype of the model; the tables have it, or float32 if it is narrower.

    Returns:
        `(cos, sin)`, each `[..., head_dim / 2]`.
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
