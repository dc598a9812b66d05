"""Random problems for `neural_memory`, and the comparison of two of its backends."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from titanslab.memory import MemoryNetwork, MemoryParams, MemoryState, neural_memory


@dataclass(frozen=True)
class Case:
    """The settings of one random problem."""

    batch: int = 2
    tokens: int = 17
    heads: int = 3
    head_dim: int = 8
    depth: int = 2
    expansion: int = 2
    chunk_size: int = 4
    residual: bool = True
    norm: bool = True
    grad_clip: float | None = None
    per_layer: bool = False
    state: bool = False
    mask: bool = False
    reset: bool = False
    initial: bool = False
    theta: float = 0.05
    forget_to: str = "zero"
    seed: int = 0
    dtype: torch.dtype = torch.float64

    def with_(self, **changes) -> "Case":
        return replace(self, **changes)


@dataclass
class Problem:
    """The tensors of a case. `leaves` are those that receive gradients."""

    leaves: dict[str, Tensor]
    network: MemoryNetwork
    params: MemoryParams
    state: MemoryState | None
    initial: MemoryState | None
    mask: Tensor | None
    reset: Tensor | None
    chunk_size: int
    forget_to: str = "zero"

    def run(self, backend: str, **changes):
        names = ("q", "k", "v", "theta", "eta", "alpha")
        options = {"state": self.state, "mask": self.mask, "reset": self.reset, "initial": self.initial} | changes
        return neural_memory(
            *(self.leaves[n] for n in names),
            self.network,
            self.params,
            chunk_size=self.chunk_size,
            backend=backend,
            forget_to=self.forget_to,
            **options,
        )


def make(case: Case) -> Problem:
    """Draw the tensors of `case`."""
    g = torch.Generator().manual_seed(case.seed)
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Tensor) -> Tensor:
        leaves[name] = value.to(case.dtype).requires_grad_()
        return leaves[name]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    b, t, h, d = case.batch, case.tokens, case.heads, case.head_dim
    network = MemoryNetwork(case.depth, case.expansion, case.residual, case.norm, grad_clip=case.grad_clip)
    for name in ("q", "k", "v"):
        leaf(name, normal(b, t, h, d) / (1 if name == "v" else d**0.5))
    shape = (b, t, h, case.depth) if case.per_layer else (b, t, h)
    eta = torch.sigmoid(normal(*shape))
    leaf("theta", torch.sigmoid(normal(*shape)) * (1 - eta) * case.theta)
    leaf("eta", eta)
    leaf("alpha", torch.sigmoid(normal(*shape) - 2))

    # keys have unit norm; with these scales every product has about unit variance, so rounding is not amplified
    def weights(name: str, rows: tuple[int, ...], gain: float = 1.0) -> tuple[Tensor, ...]:
        return tuple(
            leaf(f"{name}{i}", gain * normal(*rows, h, *w) / (w[0] ** 0.5 if i else 1))
            for i, w in enumerate(network.widths(d))
        )

    start = weights("W", ())
    norm = (
        (leaf("norm_weight", 1 + 0.1 * normal(h, d)), leaf("norm_bias", 0.1 * normal(h, d)))
        if case.norm
        else (None, None)
    )
    state = initial = None
    if case.state:
        offset = torch.randint(0, case.chunk_size, (b,), generator=g)
        state = MemoryState(weights("M", (b,)), weights("S", (b,), 0.1), weights("C", (b,)), offset)
    if case.initial:
        begin = weights("I", (1,))
        initial = MemoryState(begin, weights("J", (1,), 0.1), begin, torch.zeros(1, dtype=torch.int64))
    mask = torch.rand(b, t, generator=g) > 0.3 if case.mask else None
    reset = torch.rand(b, t, generator=g) > 0.85 if case.reset else None
    flags = mask, reset, case.chunk_size, case.forget_to
    return Problem(leaves, network, MemoryParams(start, *norm), state, initial, *flags)


def outputs_and_gradients(problem: Problem, backend: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All outputs by name, and the gradients of all leaves for a fixed random functional of the outputs."""
    y, state = problem.run(backend)
    outputs = {"y": y} | {k: t for k, t in state.tensors().items() if k != "offset"}
    g = torch.Generator().manual_seed(1)
    total = sum((t * torch.randn(t.shape, generator=g, dtype=torch.float64).to(t)).sum() for t in outputs.values())
    gradients = torch.autograd.grad(total, list(problem.leaves.values()), allow_unused=True)
    named = {
        n: torch.zeros_like(leaf) if gradient is None else gradient
        for (n, leaf), gradient in zip(problem.leaves.items(), gradients, strict=True)
    }
    return outputs | {"offset": state.offset}, named


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference between `a` and `b`, relative to 1 + the largest entry of `b`."""
    if b.numel() == 0:
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / (1 + b.abs().max()))


def loss_of_precision(a: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference, relative to the root mean square of `truth`."""
    a, truth = a.detach().double(), truth.detach().double()
    return float((a - truth).square().mean().sqrt() / (1e-30 + truth.square().mean().sqrt()))


def worst(case: Case, backend: str, against: str = "reference") -> dict[str, float]:
    """Distance of each output and gradient between the backends `backend` and `against`, by name."""
    got, want = outputs_and_gradients(make(case), backend), outputs_and_gradients(make(case), against)
    return {n: distance(got[part][n], want[part][n]) for part in (0, 1) for n in want[part]}
