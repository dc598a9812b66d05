"""The memory network f(x; W): its shape, its slow parameters and its forward pass (paper §3.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5
# E[gelu(z)^2] for z ~ N(0, 1): the mean share of one hidden unit in the squared norm of a layer's input.
GELU_SECOND_MOMENT = 0.4252214825702577


@dataclass(frozen=True)
class MemoryNetwork:
    """Shape of the small network whose weights are the memory.

    `f(x) = x + LayerNorm(W_L(... gelu(x W_1)))` with the exact GELU, one network per head, no biases.

    Args:
        depth: number of weight matrices L (1 = linear memory).
        expansion: hidden width over head width; used only where `depth > 1`.
        residual: add the input to the output.
        norm: LayerNorm on the last layer's output, with a slow weight and bias per head.
        grad_clip: largest l2 norm, per token, of the inner gradient at the last layer's output; None = off.
    """

    depth: int = 2
    expansion: int = 4
    residual: bool = True
    norm: bool = True
    grad_clip: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"depth must be an integer of at least 1, got {self.depth!r}")
        if not isinstance(self.expansion, int) or self.expansion < 1:
            raise ValueError(f"expansion must be an integer of at least 1, got {self.expansion!r}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"grad_clip must be a positive number or None, got {self.grad_clip!r}")

    def widths(self, head_dim: int) -> list[tuple[int, int]]:
        """`(d_in, d_out)` of each layer's weight for heads of `head_dim`."""
        hidden = self.expansion * head_dim
        dims = [head_dim] + [hidden] * (self.depth - 1) + [head_dim]
        return list(pairwise(dims))


@dataclass(frozen=True)
class MemoryParams:
    """Slow (outer-loop) parameters of the memory.

    Args:
        weights: M_0, one `[H, d_in, d_out]` per layer: where every sequence starts.
        norm_weight, norm_bias: `[H, D]` of the LayerNorm; None where the network has no norm.
    """

    weights: tuple[Tensor, ...]
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    @property
    def norm(self) -> list[Tensor]:
        """Weight and bias of the LayerNorm, or nothing."""
        return [n for n in (self.norm_weight, self.norm_bias) if n is not None]

    def to(self, dtype: torch.dtype) -> "MemoryParams":
        """The same parameters in another dtype."""
        return MemoryParams(tuple(w.to(dtype) for w in self.weights), *(n.to(dtype) for n in self.norm))


def layer_norm(z: Tensor) -> Tensor:
    """LayerNorm over the last dimension without its affine part."""
    return F.layer_norm(z, z.shape[-1:], eps=NORM_EPS)


def output(
    x: Tensor,
    z: Tensor,
    network: MemoryNetwork,
    params: MemoryParams,
    normalize: Callable[[Tensor], Tensor] = layer_norm,
) -> Tensor:
    """f(x) from the last layer's product: `x + LayerNorm(z)`, all `[B,H,T,D]`."""
    if network.norm:
        z = normalize(z)
        if params.norm_weight is not None:
            z = z * params.norm_weight[:, None, :]
        if params.norm_bias is not None:
            z = z + params.norm_bias[:, None, :]
    return x + z if network.residual else z


def last_product(x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """z_L, the last layer's product, for `x [B,H,T,D]` and `weights` of `[B,H,d_in,d_out]`."""
    for weight in weights[:-1]:
        x = F.gelu(x @ weight)
    return x @ weights[-1]


def apply_network(x: Tensor, weights: tuple[Tensor, ...], network: MemoryNetwork, params: MemoryParams) -> Tensor:
    """f(x; W) for `x [B,H,T,D]` and `weights` of `[B,H,d_in,d_out]` -> `[B,H,T,D]`."""
    return output(x, last_product(x, weights), network, params)
