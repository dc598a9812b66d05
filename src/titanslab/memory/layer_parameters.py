"""Parameters of a `NeuralMemory`, their initial values, and its gates."""

import math
from functools import lru_cache
from inspect import Signature, signature
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.memory.config import MemoryConfig
from titanslab.memory.conv import ShortConv, start_projections
from titanslab.memory.network import GELU_SECOND_MOMENT, MemoryParams

# Shortest half-life at the start of the layers below the last. Where such a layer fades, LayerNorm multiplies the
# inner gradient.
LOWER_HALF_LIFE = 2.0**17
# Upper bound on the squared gain from one layer's output to the next.
LAYER_GAIN = 4.0


class LayerParameters(nn.Module):
    """Parameters of the layer and their initial values.

    Args:
        hidden_size: width of the input.
        options, named: `num_heads` and the other options of `MemoryConfig`, in its order.
    """

    def __init__(self, hidden_size: int, *options: Any, **named: Any) -> None:
        super().__init__()
        self.config = config = MemoryConfig(*options, **named)
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, config.num_heads, config.width(hidden_size)
        self.network = config.network(self.head_dim)
        self.chunk_size, self.conv_size, self.backend = config.chunk_size, config.conv_size, config.backend
        self.gate_layers = config.gate_layers
        limits = self.step_limits()
        self.gate_limits = tuple(limits) if self.gate_layers > 1 else (min(limits),)
        heads, head_dim, inner = self.num_heads, self.head_dim, self.num_heads * self.head_dim
        for name in ("q", "k", "v"):
            self.add_module(f"{name}_proj", nn.Linear(hidden_size, inner, bias=False))
            if self.conv_size > 1:
                self.add_module(f"{name}_conv1d", ShortConv(inner, self.conv_size))
        gates = heads * self.gate_layers
        self.theta_proj = nn.Linear(hidden_size, gates)
        self.theta_key_proj = nn.Linear(inner, gates, bias=False) if config.gate_keys else None
        self.eta_proj = nn.Linear(hidden_size, gates) if config.momentum else None
        self.alpha_proj = nn.Linear(hidden_size, gates) if config.forgetting else None
        self.g_proj = nn.Linear(hidden_size, inner, bias=False)
        self.o_norm = nn.Parameter(torch.empty(heads, head_dim))
        self.o_proj = nn.Linear(inner, hidden_size, bias=False)
        self.memory_weights = nn.ParameterList(
            nn.Parameter(torch.empty(heads, *w)) for w in self.network.widths(head_dim)
        )
        self.memory_norm_weight = nn.Parameter(torch.empty(heads, head_dim)) if config.norm else None
        self.memory_norm_bias = nn.Parameter(torch.empty(heads, head_dim)) if config.norm else None
        self.reset_parameters()

    # help() and editors then show each option by its name.
    __init__.__signature__ = Signature(  # type: ignore[attr-defined]
        [*list(signature(__init__).parameters.values())[:2], *signature(MemoryConfig).parameters.values()]
    )

    @classmethod
    def from_config(cls, hidden_size: int, config: MemoryConfig) -> Self:
        """A layer of `hidden_size` with the options of `config`."""
        return cls(hidden_size, **config.to_dict())

    def input_second_moments(self) -> list[float]:
        """E|a_{l-1}|^2 at the start for the input of each layer of the memory, for keys of norm 1."""
        hidden = self.network.expansion * self.head_dim * GELU_SECOND_MOMENT
        return [1.0] + [hidden] * (self.network.depth - 1)

    def step_limits(self) -> list[float]:
        """The largest stable inner step of each layer at the start. OURS: 1 / (2 E|a_{l-1}|^2 gain^(L-l))."""
        depth = self.network.depth
        return [
            0.5 / (moment * LAYER_GAIN ** (depth - 1 - layer))
            for layer, moment in enumerate(self.input_second_moments())
        ]

    def reset_parameters(self) -> None:
        """Draw all initial values: M_0 and its norm, the gates, and projections that recall from the first step."""
        for weight, moment in zip(self.memory_weights, self.input_second_moments(), strict=True):
            nn.init.normal_(weight, std=moment**-0.5)  # Every z_l starts with unit variance.
        if self.memory_norm_weight is not None and self.memory_norm_bias is not None:
            nn.init.ones_(self.memory_norm_weight)
            nn.init.zeros_(self.memory_norm_bias)
        nn.init.ones_(self.o_norm)
        self.reset_projections()
        self.reset_gates()

    def reset_projections(self) -> None:
        """Draw q, k, v, their convolutions and o by `start_projections`; g_proj keeps the start of `nn.Linear`."""
        projections = [getattr(self, f"{name}_proj").weight for name in "qkvo"]
        taps = [getattr(self, f"{name}_conv1d").weight for name in "qkv"] if self.conv_size > 1 else []
        start_projections(projections, taps)

    def reset_gates(self) -> None:
        """Draw the gates: their weights start small, so that the biases decide."""
        gates = [g for g in (self.theta_proj, self.eta_proj, self.alpha_proj) if g is not None]
        for gate in gates:
            nn.init.normal_(gate.weight, std=0.02)
            nn.init.zeros_(gate.bias)
        nn.init.constant_(self.theta_proj.bias, self.config.theta_bias)
        if self.theta_key_proj is not None:
            nn.init.zeros_(self.theta_key_proj.weight)
        if self.alpha_proj is not None:
            low, high = (math.log2(h) for h in self.config.half_lives)
            steps = (
                torch.linspace(low, high, self.num_heads) if self.num_heads > 1 else torch.tensor([(low + high) / 2])
            )
            half_lives = (2**steps)[:, None].repeat(1, self.gate_layers)
            half_lives[:, :-1].clamp_(min=LOWER_HALF_LIFE)
            alpha = -torch.expm1(-math.log(2) / half_lives)
            with torch.no_grad():
                self.alpha_proj.bias.view(self.num_heads, -1).copy_(torch.logit(alpha))

    @property
    def params(self) -> MemoryParams:
        """The slow parameters of the memory networks."""
        return MemoryParams(tuple(self.memory_weights), self.memory_norm_weight, self.memory_norm_bias)

    def gates(self, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """theta, eta, alpha `[B,T,H,1 or L]`, in float32 at least. OURS: theta in units of the stability limit.

        `k [B,T,H,D]` are the keys, which `gate_keys` needs.
        """
        return self.all_gates(x, k)[:3]

    def all_gates(self, x: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`gates`, then the sigmoid of theta's gate, for which 1 is a write at the stability limit."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        projections = self.gate_projections()
        with torch.autocast(x.device.type, enabled=False):
            weight = torch.cat([p.weight.to(x.dtype) for p in projections])
            bias = torch.cat([p.bias.to(x.dtype) for p in projections])
            return self.activate(F.linear(x, weight, bias), k)

    def gate_projections(self) -> list[nn.Linear]:
        """The projections of theta, eta and alpha, without those that an ablation takes away."""
        return [p for p in (self.theta_proj, self.eta_proj, self.alpha_proj) if p is not None]

    def activate(self, raw: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`all_gates` from the concatenated outputs `raw [B,T,...]` of the projections."""
        if self.theta_key_proj is not None:
            if k is None:
                raise ValueError("k is None, but the gates of a memory with gate_keys are made of the keys too")
            # A key has norm 1. The factor gives its entries the size of the input's entries.
            added = F.linear(k.flatten(-2).to(raw.dtype), self.theta_key_proj.weight.to(raw.dtype)) * self.head_dim**0.5
            raw = raw + F.pad(added, (0, raw.shape[-1] - added.shape[-1]))
        raw = torch.sigmoid(raw).unflatten(-1, (-1, self.num_heads, self.gate_layers))
        parts = iter(raw.unbind(-3))
        write = next(parts)
        eta = torch.zeros_like(write) if self.eta_proj is None else next(parts)
        alpha = torch.zeros_like(write) if self.alpha_proj is None else next(parts)
        # With (1 - eta), momentum changes the lag of a write and not its size.
        return write * (1 - eta) * self._limits(raw), eta, alpha, write

    def _limits(self, like: Tensor) -> Tensor:
        """`gate_limits`, the `step_limits` of the gates' layers, with dtype and device of `like`."""
        plain = type(like) is Tensor and not torch.compiler.is_compiling()  # else the tensor belongs to one trace
        return (_constant if plain else _tensor)(self.gate_limits, like.dtype, like.device)


def _tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # A kept tensor may be used in training later.
        return torch.tensor(values, dtype=dtype, device=device)


# The tensor of these values is kept for each dtype and device: a CUDA graph cannot record the copy to the GPU.
_constant = lru_cache(maxsize=256)(_tensor)
