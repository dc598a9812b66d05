"""What a `NeuralMemory` is made of, how it starts, and its gates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titanslab.memory.conv import ShortConv, start_projections
from titanslab.memory.network import MemoryNetwork, MemoryParams, gelu_second_moment

# heads forget half of what they hold after 2**6 .. 2**14 tokens at the start of training
HALF_LIVES = (2.0**6, 2.0**14)
# the layers below the last keep what they hold: each that fades makes LayerNorm multiply the inner gradient
LOWER_HALF_LIFE = 2.0**17
# by how much a layer above multiplies a change of a layer's output, squared, at its largest
LAYER_GAIN = 4.0
THETA_BIAS = 2.0  # a write starts near the stability limit
# OURS: a bound on one token's write; at the start it hardly ever binds
GRAD_CLIP = 1.0


class LayerParameters(nn.Module):
    """Parameters of the layer and their initial values; arguments as in `NeuralMemory`."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        depth: int = 2,
        expansion: int = 4,
        chunk_size: int = 16,
        *,
        head_dim: int | None = None,
        residual: bool = True,
        norm: bool = True,
        grad_clip: float | None = GRAD_CLIP,
        conv_size: int = 4,
        gates_per_layer: bool = True,
        momentum: bool = True,
        forgetting: bool = True,
        half_lives: tuple[float, float] = HALF_LIVES,
        theta_bias: float = THETA_BIAS,
        gate_keys: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if head_dim is None:
            if hidden_size % num_heads:
                raise ValueError(
                    f"hidden_size must be a multiple of num_heads, got {hidden_size} and {num_heads}; or give head_dim"
                )
            head_dim = hidden_size // num_heads
        limit = grad_clip and grad_clip * head_dim**0.5
        self.network = MemoryNetwork(depth, expansion, residual, norm, "gelu", limit)
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, head_dim
        self.chunk_size, self.conv_size, self.backend = chunk_size, conv_size, backend
        self.gate_layers = depth if gates_per_layer else 1
        self.momentum, self.forgetting, self.half_lives = momentum, forgetting, half_lives
        self.theta_bias = theta_bias
        self._made_limits: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        inner = num_heads * head_dim
        for name in ("q", "k", "v"):
            self.add_module(f"{name}_proj", nn.Linear(hidden_size, inner, bias=False))
            if conv_size > 1:
                self.add_module(f"{name}_conv1d", ShortConv(inner, conv_size))
        self.theta_proj = nn.Linear(hidden_size, num_heads * self.gate_layers)
        self.theta_key_proj = nn.Linear(inner, num_heads * self.gate_layers, bias=False) if gate_keys else None
        self.eta_proj = nn.Linear(hidden_size, num_heads * self.gate_layers) if momentum else None
        self.alpha_proj = nn.Linear(hidden_size, num_heads * self.gate_layers) if forgetting else None
        self.g_proj = nn.Linear(hidden_size, inner, bias=False)
        self.o_norm = nn.Parameter(torch.empty(num_heads, head_dim))
        self.o_proj = nn.Linear(inner, hidden_size, bias=False)
        self.memory_weights = nn.ParameterList(
            nn.Parameter(torch.empty(num_heads, *w)) for w in self.network.widths(head_dim)
        )
        self.memory_norm_weight = nn.Parameter(torch.empty(num_heads, head_dim)) if norm else None
        self.memory_norm_bias = nn.Parameter(torch.empty(num_heads, head_dim)) if norm else None
        self.reset_parameters()

    def input_second_moments(self) -> list[float]:
        """E|a_{l-1}|^2 of each layer of the memory at the start, for unit-norm keys."""
        hidden = self.network.expansion * self.head_dim * gelu_second_moment()
        return [1.0] + [hidden] * (self.network.depth - 1)

    def step_limits(self) -> list[float]:
        """The largest stable inner step of each layer at the start. OURS: 1 / (2 E|a_{l-1}|^2 gain^(L-l))."""
        depth = self.network.depth
        return [
            0.5 / (moment * LAYER_GAIN ** (depth - 1 - layer))
            for layer, moment in enumerate(self.input_second_moments())
        ]

    def reset_parameters(self) -> None:
        """Initial values: M_0 and its norm, the gates, and projections that recall from the first step."""
        for weight, moment in zip(self.memory_weights, self.input_second_moments(), strict=True):
            nn.init.normal_(weight, std=moment**-0.5)  # every z_l starts with unit variance
        if self.memory_norm_weight is not None and self.memory_norm_bias is not None:
            nn.init.ones_(self.memory_norm_weight)
            nn.init.zeros_(self.memory_norm_bias)
        nn.init.ones_(self.o_norm)
        self.reset_projections()
        self.reset_gates()

    def reset_projections(self) -> None:
        """q, k, v, their convolutions and the output, `start_projections`; g_proj as in `nn.Linear`."""
        projections = [getattr(self, f"{name}_proj").weight for name in "qkvo"]
        taps = [getattr(self, f"{name}_conv1d").weight for name in "qkv"] if self.conv_size > 1 else []
        start_projections(projections, taps)

    def reset_gates(self) -> None:
        """Gate biases; their weights start small, so that the biases decide."""
        gates = [g for g in (self.theta_proj, self.eta_proj, self.alpha_proj) if g is not None]
        for gate in gates:
            nn.init.normal_(gate.weight, std=0.02)
            nn.init.zeros_(gate.bias)
        nn.init.constant_(self.theta_proj.bias, self.theta_bias)
        if self.theta_key_proj is not None:
            nn.init.zeros_(self.theta_key_proj.weight)
        if self.alpha_proj is not None:
            low, high = (math.log2(h) for h in self.half_lives)
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

        `k [B,T,H,D]` are the keys, for `gate_keys`.
        """
        return self.all_gates(x, k)[:3]

    def all_gates(self, x: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`gates`, and the sigmoid of theta's gate, of which 1 is a write at the stability limit."""
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
        """`all_gates` of the projections `raw [B,T,...]` of the input, in one tensor."""
        if self.theta_key_proj is not None:
            if k is None:
                raise ValueError("k is None, but the gates of a memory with gate_keys are made of the keys too")
            # a key has norm 1: scaled so that its entries are of the input's size
            seen = F.linear(k.flatten(-2).to(raw.dtype), self.theta_key_proj.weight.to(raw.dtype)) * self.head_dim**0.5
            raw = raw + F.pad(seen, (0, raw.shape[-1] - seen.shape[-1]))
        raw = torch.sigmoid(raw).unflatten(-1, (-1, self.num_heads, self.gate_layers))
        parts = iter(raw.unbind(-3))
        write = next(parts)
        eta = torch.zeros_like(write) if self.eta_proj is None else next(parts)
        alpha = torch.zeros_like(write) if self.alpha_proj is None else next(parts)
        # momentum changes the lag of a write and not its size
        return write * (1 - eta) * self._limits(raw), eta, alpha, write

    def _limits(self, like: Tensor) -> Tensor:
        """`step_limits` of the gates' layers; kept for each device and dtype: a recorded step cannot make it."""
        keeps = type(like) is Tensor and not torch.compiler.is_compiling()
        key = (like.device, like.dtype)
        if keeps and key in self._made_limits:
            return self._made_limits[key]
        limits = self.step_limits() if self.gate_layers > 1 else [min(self.step_limits())]
        with torch.inference_mode(False):  # training may need it later
            made = torch.tensor(limits, dtype=like.dtype, device=like.device)
        if keeps:
            self._made_limits[key] = made
        return made
