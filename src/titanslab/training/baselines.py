"""Where a Gated DeltaNet of transformers starts: as its authors', or so that it can recall from the first step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from titanslab.memory.conv import start_to_recall

# of the steps that the decays of Gated DeltaNet and Mamba2 start with, as their authors' code draws them
STEPS = (1e-3, 1e-1)
# where `recall` starts: heads forget half after so many tokens
HALF_LIVES = (2.0**14, 2.0**20)


def start_gated_deltanet(model: nn.Module, start: str) -> None:
    """Draw the start of a model's Gated DeltaNet layers anew, with torch's random numbers.

    transformers leaves every `dt_bias` at 1: most heads forget all within a token. `authors`: steps of `STEPS`, as in
    flash-linear-attention. `recall`: half-lives of `HALF_LIVES`, and q, k, v and what is added to the residual stream
    as a `NeuralMemory` starts, so that a query finds what once followed the tokens it ends with.
    """
    layers: list[Any] = [
        module for module in model.modules() if hasattr(module, "A_log") and hasattr(module, "in_proj_qkvz")
    ]
    if not layers:
        raise ValueError(
            f"model.start = {start!r} is for models with Gated DeltaNet layers (architecture qwen3_next), and "
            f"{type(model).__name__} has none; leave it out"
        )
    with torch.no_grad():
        for layer in layers:
            heads = layer.dt_bias.shape[0]
            if start == "authors":
                low, high = (math.log(step) for step in STEPS)
                layer.dt_bias.copy_(_before_softplus(torch.exp(low + (high - low) * torch.rand(heads))))
                continue
            low, high = (math.log2(half_life) for half_life in HALF_LIVES)
            layer.A_log.zero_()
            layer.dt_bias.copy_(_before_softplus(math.log(2) / 2 ** torch.linspace(low, high, heads)))
            _start_projections(layer)


def _before_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def _start_projections(layer: Any) -> None:
    """As `NeuralMemory.reset_projections`, in the layer's own order: `[q | k | v | z]` a head, taps oldest first."""
    hidden = layer.in_proj_qkvz.in_features
    width = layer.head_k_dim
    heads = layer.in_proj_qkvz.weight.view(layer.num_k_heads, -1, hidden)
    values = (heads.shape[1] - 2 * width) // 2
    nn.init.normal_(heads[:, width : 2 * width + values], std=hidden**-0.5)
    heads[:, :width] = heads[:, width : 2 * width]
    nn.init.normal_(layer.out_proj.weight, std=0.1 * hidden**-0.5)
    size = layer.conv1d.weight.shape[2]
    key_width = layer.num_k_heads * width
    widths = (key_width, key_width, layer.conv1d.weight.shape[0] - 2 * key_width)
    taps = [torch.empty(size, n) for n in widths]
    start_to_recall(*taps)
    layer.conv1d.weight[:, 0] = torch.cat(taps, 1).T.flip(1)
