"""Initial values of a memory layer; all of them OURS, because the paper gives none (docs/choices.md)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from titanslab.memory.network import GELU_SECOND_MOMENT, MemoryNetwork

if TYPE_CHECKING:
    from titanslab.memory.layer import NeuralMemory

# Shortest half-life at the start of the layers below the last, in tokens. Where such a layer fades, its learned M_0
# fades too, and LayerNorm multiplies the inner gradient.
LOWER_HALF_LIFE = 2.0**24
# Upper bound on the squared gain from one layer's output to the next.
LAYER_GAIN = 4.0


def input_second_moments(network: MemoryNetwork, head_dim: int) -> list[float]:
    """E|a_{l-1}|^2 at the start for the input of each layer of the memory, for keys of norm 1."""
    return [1.0] + [network.expansion * head_dim * GELU_SECOND_MOMENT] * (network.depth - 1)


def step_limits(network: MemoryNetwork, head_dim: int, together: float = 1.0) -> list[float]:
    """The largest stable inner step of each layer at the start: 1 / (2 E|a_{l-1}|^2 gain^(L-l) together).

    `together`: the number of tokens whose writes add up in one direction before a token sees them, see
    `MemoryConfig.chunk_coherence`.
    """
    moments = input_second_moments(network, head_dim)
    gains = [LAYER_GAIN ** (len(moments) - 1 - layer) for layer in range(len(moments))]
    return [0.5 / (moment * gain * together) for moment, gain in zip(moments, gains, strict=True)]


def start_layer(layer: "NeuralMemory") -> None:
    """Draw all initial values: M_0 and its norm, the gates, and projections that recall from the first step.

    g_proj keeps the start of `nn.Linear`.
    """
    moments = input_second_moments(layer.network, layer.head_dim)
    for weight, moment in zip(layer.memory_weights, moments, strict=True):
        nn.init.normal_(weight, std=moment**-0.5)  # Every z_l starts with unit variance.
    if layer.memory_norm_weight is not None and layer.memory_norm_bias is not None:
        nn.init.ones_(layer.memory_norm_weight)
        nn.init.zeros_(layer.memory_norm_bias)
    nn.init.ones_(layer.o_norm)
    projections = [getattr(layer, f"{name}_proj").weight for name in "qkvo"]
    taps = [getattr(layer, f"{name}_conv1d").weight for name in "qkv"] if layer.conv_size > 1 else []
    start_projections(projections, taps)
    for gate in layer.gate_projections():
        nn.init.normal_(gate.weight, std=0.02)  # so small that the biases decide
        nn.init.zeros_(gate.bias)
    nn.init.constant_(layer.theta_proj.bias, layer.config.theta_bias)
    if layer.theta_key_proj is not None:
        nn.init.zeros_(layer.theta_key_proj.weight)
    if layer.alpha_proj is None:
        return
    low, high = (math.log2(h) for h in layer.config.half_lives)
    heads = layer.num_heads
    wide = torch.float32  # half-lives are beyond the range of float16
    middle = torch.tensor([(low + high) / 2], dtype=wide)
    steps = torch.linspace(low, high, heads, dtype=wide) if heads > 1 else middle
    half_lives = (2**steps)[:, None].repeat(1, layer.gate_layers)
    if layer.config.forget_to == "zero":
        half_lives[:, :-1].clamp_(min=LOWER_HALF_LIFE)
    alpha = -torch.expm1(-math.log(2) / half_lives)
    with torch.no_grad():
        layer.alpha_proj.bias.view(heads, -1).copy_(torch.logit(alpha))


@torch.no_grad()
def start_projections(projections: Sequence[Tensor], taps: Sequence[Tensor]) -> None:
    """Draw the weights `[out, in]` of q, k, v and the output, and the taps of q's, k's and v's convolutions, if any.

    OURS: a query finds what once followed the tokens it ends with (figures in docs/log.md): q starts with the
    projection of k, and with the taps of `start_to_recall`. What is added to the residual stream is a small share of
    it, whatever the trunk's embeddings.
    """
    q, k, v, o = projections
    width = k.shape[1]
    nn.init.normal_(k, std=width**-0.5)
    nn.init.normal_(v, std=width**-0.5)
    nn.init.normal_(o, std=0.1 * width**-0.5)
    q.copy_(k)
    if taps:
        start_to_recall(*taps)


@torch.no_grad()
def start_to_recall(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Draw the taps `[size, channels]` of q, k and v, newest token first. OURS: k's are q's one token later.

    So the key under which a token is written is made of the tokens before it, as is the query that asks for it.
    """
    nn.init.normal_(q, std=0.02)
    nn.init.normal_(k, std=0.02)
    nn.init.normal_(v, std=0.05)
    # signs and sizes differ by channel, so that the order of the tokens counts
    taps = torch.randn_like(q[1:]) / torch.arange(1, q.shape[0], device=q.device).unsqueeze(1) ** 0.6
    q[:-1] += taps
    k[1:] += taps
    v[0] += 1
