"""Compares limits of the memory with their closed forms, which are written out here."""

import pytest
import torch
import torch.nn.functional as F
from memory_cases import Case, distance, make

from titanslab.memory.network import GELU_SECOND_MOMENT
from tolerances import EXACT

BARE = Case(depth=1, residual=False, norm=False, chunk_size=1, tokens=12, batch=1, heads=2, head_dim=5)


def _run(backend: str, eta: float, alpha: float, theta: float | None = None):
    problem = make(BARE)
    with torch.no_grad():
        problem.leaves["eta"].fill_(eta)
        problem.leaves["alpha"].fill_(alpha)
        if theta is not None:
            problem.leaves["theta"].fill_(theta)
    y, state = problem.run(backend)
    return {n: t.detach() for n, t in problem.leaves.items()}, y.detach(), state


def test_delta_rule(backend: str) -> None:
    """With eta = alpha = 0 the memory is the delta rule with beta = 2 theta."""
    x, y, _ = _run(backend, 0.0, 0.0)
    memory = x["W0"].clone()
    for t in range(12):
        for h in range(2):
            k, v, beta = x["k"][0, t, h], x["v"][0, t, h], 2 * x["theta"][0, t, h]
            memory[h] += beta * torch.outer(k, v - k @ memory[h])
            assert distance(y[0, t, h], x["q"][0, t, h] @ memory[h]) < EXACT


def test_gated_delta_rule(backend: str) -> None:
    """With eta = 0 it is the gated delta rule with decay a = 1 - alpha, beta = 2 theta / a and values times a."""
    x, y, _ = _run(backend, 0.0, 0.25)
    memory, a = x["W0"].clone(), 0.75
    for t in range(12):
        for h in range(2):
            k, v, beta = x["k"][0, t, h], a * x["v"][0, t, h], 2 * x["theta"][0, t, h] / a
            memory[h] *= a
            memory[h] += beta * torch.outer(k, v - k @ memory[h])
            assert distance(y[0, t, h], x["q"][0, t, h] @ memory[h]) < EXACT


def test_nothing_written_is_pure_decay(backend: str) -> None:
    x, y, state = _run(backend, 0.5, 0.1, theta=0.0)
    decay = 0.9 ** torch.arange(1, 13, dtype=torch.float64)
    want = torch.einsum("bthd,hde->bthe", x["q"], x["W0"]) * decay[None, :, None, None]
    assert distance(y, want) < EXACT
    assert distance(state.weights[0][0], x["W0"] * decay[-1]) < EXACT


@pytest.mark.parametrize("expansion", [1, 4])
def test_depth_one_is_the_linear_memory_whatever_the_expansion(expansion: int, backend: str) -> None:
    a = make(Case(depth=1, expansion=expansion)).run(backend)[0]
    b = make(Case(depth=1, expansion=2)).run(backend)[0]
    assert torch.equal(a, b)


def test_the_second_moment_of_gelu() -> None:
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5
    assert float(torch.trapezoid(F.gelu(z) ** 2 * density, z)) == pytest.approx(GELU_SECOND_MOMENT, rel=1e-14)
