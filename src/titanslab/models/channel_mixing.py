"""The second half of a forecasting block: SwiGLU, SiMBA's EinFFT, or an MLP across the columns of the series."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.layers import RMSNorm, SwiGLU
from titanslab.models.forecasting_config import FFT_BLOCKS, TitansForecastingConfig

SCALE = 0.02  # standard deviation of EinFFT's weights at the start
SHRINK = 0.01  # threshold of its soft-shrink


class EinFFT(nn.Module):
    """Channel mixing in the frequency domain: `[N, P, hidden]` in and out (SiMBA, arXiv 2403.15360, and its code).

    The features are cut into 4 blocks. A 2-D FFT over (token, block) is followed by two complex block-diagonal layers
    with a ReLU between, a soft-shrink, and the inverse FFT, of which the real part is returned. The FFT over tokens
    is not causal.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        size = hidden_size // FFT_BLOCKS
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(2, FFT_BLOCKS, size, size)) for _ in range(2))
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(2, FFT_BLOCKS, size)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and biases are normal with standard deviation 0.02, as in SiMBA's code."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=SCALE)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            z = torch.fft.fft2(wide.unflatten(-1, (FFT_BLOCKS, -1)), dim=(1, 2), norm="ortho")
            real, imag = self._layer(0, z.real, z.imag)
            real, imag = self._layer(1, F.relu(real), F.relu(imag))
            z = torch.complex(F.softshrink(real, SHRINK), F.softshrink(imag, SHRINK))
            y = torch.fft.ifft2(z, dim=(1, 2), norm="ortho").real
        return y.flatten(-2).to(x.dtype)

    def _layer(self, i: int, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
        """A complex linear layer of each block."""
        weight, bias = self.weights[i].to(real.dtype), self.biases[i].to(real.dtype)

        def times(x: Tensor, part: int) -> Tensor:
            return torch.einsum("...bd,bdk->...bk", x, weight[part])

        return times(real, 0) - times(imag, 1) + bias[0], times(real, 1) + times(imag, 0) + bias[1]


class VariateMixing(nn.Module):
    """An MLP across the C columns of the series, for each patch and feature: `[B * C, P, hidden]` in and out. OURS."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        width = max(2 * channels, 8)
        self.up_proj = nn.Linear(channels, width)
        self.down_proj = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        across = x.unflatten(0, (-1, self.channels)).movedim(1, -1)
        return self.down_proj(F.gelu(self.up_proj(across))).movedim(-1, 1).flatten(0, 1)


class ChannelMixing(nn.Module):
    """The second half of a block, with its norms, residuals and dropout: `[B * C, P, hidden]` in and out."""

    def __init__(self, config: TitansForecastingConfig) -> None:
        super().__init__()
        kind, size = config.channel_mixing, config.hidden_size
        self.norms, self.parts = nn.ModuleList(), nn.ModuleList()
        if kind == "variates":
            self.parts.append(VariateMixing(config.num_input_channels))
        self.parts.append(EinFFT(size) if kind == "fft" else SwiGLU(size, config.intermediate_size or 0))
        for part in self.parts:  # SiMBA's code has LayerNorm before EinFFT
            norm = nn.LayerNorm(size) if isinstance(part, EinFFT) else RMSNorm(size, config.rms_norm_eps)
            self.norms.append(norm)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        for norm, part in zip(self.norms, self.parts, strict=True):
            x = x + self.dropout(part(norm(x)))
        return x
