"""Reversible instance normalisation of a series, with missing values."""

import torch
from torch import Tensor, nn

EPS = 1e-5


class InstanceScaling(nn.Module):
    """Normalise a history by its own mean and standard deviation, and scale a forecast back (RevIN).

    Missing values count for neither, and are 0 afterwards. A constant history has deviation `sqrt(EPS)`.

    Args:
        kind: "instance", or "none" for no scaling.
        channels: columns of the series, if `affine`.
        affine: a learned scale and shift of each column.
    """

    def __init__(self, kind: str, channels: int, affine: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def reset_parameters(self) -> None:
        """Start as the identity."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, values: Tensor, observed: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`values [B, T, C]` normalised, and mean and deviation `[B, 1, C]`; `observed` is bool `[B, T, C]`."""
        values = torch.where(observed, values, 0.0)
        mean, scale = values.new_zeros(1, 1, 1), values.new_ones(1, 1, 1)
        if self.kind == "instance":
            count = observed.sum(1, keepdim=True).clamp(min=1)
            mean = values.sum(1, keepdim=True) / count
            centred = torch.where(observed, values - mean, 0.0)
            scale = (centred.square().sum(1, keepdim=True) / count + EPS).sqrt()
            # The statistics are facts of the input: no gradient flows through them, as in RevIN's code.
            mean, scale = mean.detach(), scale.detach()
            values = centred / scale
        if self.weight is not None and self.bias is not None:
            values = torch.where(observed, values * self.weight + self.bias, 0.0)
        return values, (mean, scale)

    def inverse(self, values: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """Scale a forecast `[B, H, C, Q]` back."""
        mean, scale = (t.unsqueeze(-1) for t in statistics)
        if self.weight is not None and self.bias is not None:
            values = (values - self.bias.unsqueeze(-1)) / (self.weight.unsqueeze(-1) + EPS * EPS)
        return values * scale + mean


def observed_values(values: Tensor, mask: Tensor | None) -> Tensor:
    """Bool `[B, T, C]`: the values that `mask` marks as observed and that are not NaN."""
    real = ~torch.isnan(values)
    return real if mask is None else real & mask.bool()
