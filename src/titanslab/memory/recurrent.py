"""One token at a time with the gradient in closed form: the decode step, and a readable second path.

Plain differentiable torch operations, so it is also the path for channel-wise forgetting.
"""

from typing import Any

from torch import Tensor

from titanslab.memory.gradient import outer_slopes
from titanslab.memory.network import MemoryNetwork, MemoryParams
from titanslab.memory.reference import token_loop
from titanslab.memory.state import MemoryState


def closed_form(
    k: Tensor, v: Tensor, weights: tuple[Tensor, ...], network: MemoryNetwork, params: MemoryParams
) -> tuple[list[Tensor], Tensor]:
    """Arguments and results of `reference.inner_gradient`."""
    scale, shift = (None if n is None else n[:, None, :] for n in (params.norm_weight, params.norm_bias))
    k, v = k.unsqueeze(2), v.unsqueeze(2)
    inputs, slopes, _, loss = outer_slopes(k, v, weights, (scale, shift), network.residual, network.grad_clip)
    return [a.transpose(-1, -2) * d for a, d in zip(inputs, slopes, strict=True)], loss.squeeze(2)


def recurrent(*call: Any) -> tuple[Tensor, MemoryState, Tensor]:
    """`token_loop` with the gradient in closed form, and with the arguments after the first."""
    return token_loop(closed_form, *call)
