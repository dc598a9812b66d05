"""Compares every backend with the token loop in float64: outputs and outer gradients."""

from dataclasses import replace
from statistics import median

import pytest
import torch
from memory_cases import Case, distance, loss_of_precision, make, outputs_and_gradients, worst

from titanslab.memory import MemoryNetwork, MemoryParams, NeuralMemory, neural_memory
from tolerances import EXACT, FLOAT32_FLOOR, LOW_PRECISION_FACTOR

BASE = Case()
CASES = {
    "plain": BASE,
    "aligned": BASE.with_(tokens=16),
    "online": BASE.with_(chunk_size=1, tokens=9),
    "online-deep": BASE.with_(chunk_size=1, tokens=35, depth=3, per_layer=True, grad_clip=0.5, theta=0.002),
    "online-everything": BASE.with_(
        chunk_size=1, tokens=40, state=True, mask=True, reset=True, initial=True, per_layer=True, theta=0.002
    ),
    "online-no-norm": BASE.with_(chunk_size=1, tokens=16, norm=False, residual=False, theta=0.002),
    "few-tokens-a-chunk": BASE.with_(chunk_size=3),
    "short-chunks-aligned": BASE.with_(chunk_size=2, tokens=48, depth=3, per_layer=True, grad_clip=0.5, theta=0.002),
    "short-chunks-everything": BASE.with_(
        chunk_size=5, tokens=70, state=True, mask=True, reset=True, initial=True, per_layer=True, theta=0.002
    ),
    "short-chunks-state": BASE.with_(chunk_size=7, tokens=40, depth=3, state=True, grad_clip=0.5, theta=0.002),
    "short-chunks-bare": BASE.with_(chunk_size=6, tokens=40, depth=1, residual=False, norm=False, theta=0.002),
    "one-token": BASE.with_(tokens=1),
    "long-chunk": BASE.with_(chunk_size=40, tokens=63),
    "long-chunks-aligned": BASE.with_(chunk_size=40, tokens=80, theta=0.002),
    "long-chunks-deep": BASE.with_(chunk_size=32, tokens=96, depth=3, per_layer=True, grad_clip=0.5, theta=0.002),
    "long-chunks-bare": BASE.with_(chunk_size=33, tokens=66, depth=1, residual=False, norm=False, theta=0.002),
    "wide": BASE.with_(head_dim=60, heads=1, batch=1, tokens=15),
    "linear": BASE.with_(depth=1),
    "linear-bare": BASE.with_(depth=1, residual=False, norm=False),
    "deep-3": BASE.with_(depth=3, per_layer=True),
    "deep-4": BASE.with_(depth=4, expansion=1, per_layer=True),
    "no-norm": BASE.with_(norm=False, depth=3),
    "no-residual": BASE.with_(residual=False),
    "clipped": BASE.with_(grad_clip=0.5),
    "clipped-no-norm": BASE.with_(grad_clip=0.5, norm=False),
    "state": BASE.with_(state=True),
    "state-aligned": BASE.with_(state=True, tokens=16, seed=5),
    "state-mask": BASE.with_(state=True, mask=True, per_layer=True),
    "documents": BASE.with_(reset=True, initial=True, tokens=33),
    "everything": BASE.with_(state=True, mask=True, reset=True, initial=True, per_layer=True, tokens=33, seed=3),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_token_loop(name: str, backend: str) -> None:
    errors = worst(CASES[name], backend)
    assert max(errors.values()) < EXACT, {n: e for n, e in errors.items() if e >= EXACT}


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 257])
def test_ugly_lengths(tokens: int, backend: str) -> None:
    case = BASE.with_(tokens=tokens, chunk_size=16, state=True, batch=1, seed=tokens, theta=0.002)
    errors = worst(case, backend)
    assert max(errors.values()) < EXACT, errors


@pytest.mark.parametrize("gate", ["theta", "eta", "alpha"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gates_at_their_limits(gate: str, value: float, backend: str) -> None:
    def run(name: str):
        problem = make(BASE.with_(state=True))
        with torch.no_grad():
            problem.leaves[gate][:, ::3] = value * (0.01 if gate == "theta" else 1.0)
        return outputs_and_gradients(problem, name)

    got, want = run(backend), run("reference")
    for part in (0, 1):
        for name, expected in want[part].items():
            assert distance(got[part][name], expected) < EXACT, name


def test_channelwise_forgetting_is_the_token_loops() -> None:
    problem = make(BASE)
    g = torch.Generator().manual_seed(2)
    shape = problem.leaves["alpha"].shape
    alpha = tuple(
        torch.rand(*shape, width, generator=g, dtype=torch.float64) / 4 for width, _ in problem.network.widths(8)
    )
    problem.leaves["alpha"] = alpha
    want, got = problem.run("reference")[0], problem.run("auto")[0]
    assert distance(got, want) < EXACT
    scalar = make(BASE)
    scalar.leaves["alpha"] = tuple(a * 0 + 0.1 for a in alpha)
    constant = make(BASE)
    constant.leaves["alpha"] = torch.full(shape, 0.1, dtype=torch.float64)
    assert distance(scalar.run("auto")[0], constant.run("reference")[0]) < EXACT
    with pytest.raises(ValueError, match="channel-wise"):
        problem.run("chunked")


@pytest.mark.parametrize("chunk_size", [1, 4, 16, 64])
def test_float32_loses_no_more_than_eager(chunk_size: int, backend: str) -> None:
    """Compares medians over three problems. A problem near the pole of a norm magnifies the rounding of either side."""
    losses: dict[str, list[float]] = {}
    for seed in (4, 5, 7):
        case = BASE.with_(tokens=80, chunk_size=chunk_size, head_dim=32, expansion=4, seed=seed, theta=0.002)
        truth = outputs_and_gradients(make(case), "reference")
        eager = outputs_and_gradients(make(case.with_(dtype=torch.float32)), "reference")
        fast = outputs_and_gradients(make(case.with_(dtype=torch.float32)), backend)
        for part in (0, 1):
            for name, want in truth[part].items():
                allowed = LOW_PRECISION_FACTOR * loss_of_precision(eager[part][name], want) + FLOAT32_FLOOR
                losses.setdefault(name, []).append(loss_of_precision(fast[part][name], want) / allowed)
    assert {name: median(loss) for name, loss in losses.items() if median(loss) >= 1} == {}


def test_bfloat16_inputs_keep_a_float32_state(backend: str) -> None:
    problem = make(BASE)
    halves = {n: t.detach().bfloat16() for n, t in problem.leaves.items() if n in "qkv"}
    problem.leaves |= halves
    y, state = problem.run(backend)
    assert y.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for n, t in state.tensors().items() if n != "offset")
    problem.leaves |= {n: t.double() for n, t in halves.items()}
    want, _ = problem.run("reference")
    assert distance(y, want) < 2 * torch.finfo(torch.bfloat16).eps


def test_same_call_twice_is_bitwise_equal(backend: str) -> None:
    case = BASE.with_(dtype=torch.float32, tokens=64, state=True, mask=True)
    first, second = (outputs_and_gradients(make(case), backend) for _ in range(2))
    assert all(torch.equal(first[p][n], second[p][n]) for p in (0, 1) for n in first[p])


def test_inner_loss_is_the_loss_before_the_write(backend: str) -> None:
    problem = make(BASE.with_(state=True, mask=True))
    *_, want = problem.run("reference", return_loss=True)
    *_, got = problem.run(backend, return_loss=True)
    assert distance(got, want) < EXACT
    assert not got.requires_grad


def test_runs_under_no_grad_and_inference_mode(backend: str) -> None:
    problem = make(BASE)
    want = problem.run(backend)[0]
    with torch.no_grad():
        assert torch.equal(problem.run(backend)[0], want)
    with torch.inference_mode():
        assert torch.equal(problem.run(backend)[0], want)


@pytest.mark.parametrize("backend", ["reference", "recurrent", "chunked"])
@pytest.mark.parametrize("size", [0.0, 1e-14])
def test_gradients_are_finite_where_the_clipped_gradient_is_nothing(backend: str, size: float) -> None:
    """The inner gradient of zeros is 0; that of tiny inputs is so small that its square underflows in float32."""
    torch.manual_seed(0)
    network = MemoryNetwork(1, 1, residual=False, norm=False, grad_clip=1.0)
    q, k, v = (torch.randn(1, 4, 1, 4) for _ in range(3))
    k, v = (k * (size > 0)).requires_grad_(), (v * size).requires_grad_()
    gates = [torch.rand(1, 4, 1) * 0.1 for _ in range(3)]
    params = MemoryParams((torch.zeros(1, 4, 4).requires_grad_(),))
    y, _ = neural_memory(q, k, v, *gates, network, params, None, 4, backend)
    y.sum().backward()
    expected = reference_gradients(q, k, v, gates, network, params)
    for tensor, double in zip((k, v, params.weights[0]), expected, strict=True):
        torch.testing.assert_close(tensor.grad.double(), double, atol=1e-20, rtol=1e-4)


def reference_gradients(q, k, v, gates, network, params):
    """Gradients by the token loop in float64."""
    k, v, w = (t.detach().double().requires_grad_() for t in (k, v, params.weights[0]))
    gates = [g.double() for g in gates]
    y, _ = neural_memory(q.double(), k, v, *gates, network, MemoryParams((w,)), None, 4, "reference")
    return torch.autograd.grad(y.sum(), (k, v, w))


@pytest.mark.parametrize("backend", ["reference", "recurrent", "chunked"])
def test_no_rows_and_no_tokens(backend: str) -> None:
    for batch, tokens in ((0, 5), (2, 0)):
        memory = NeuralMemory(16, 2, chunk_size=4, backend=backend)
        x = torch.randn(batch, tokens, 16)
        for reset in (None, torch.zeros(batch, tokens, dtype=torch.bool)):
            for learn in (True, False):
                y, state = memory(x, memory.initial_state(batch), reset=reset, learn=learn)
                assert y.shape == x.shape
                assert state.memory.batch_size == batch


def test_the_token_loop_says_that_inference_mode_forbids_it() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch\.no_grad\(\)"):
        NeuralMemory(16, 2, backend="reference")(torch.randn(1, 3, 16))


@pytest.mark.parametrize("chunk_size", [4, 16])
def test_whole_chunks_in_a_row_of_calls(chunk_size: int, backend: str) -> None:
    """A call that ends with a whole chunk passes its state on without a copy, with the results of the token loop."""
    problem = make(BASE.with_(tokens=48, chunk_size=chunk_size, theta=0.002))
    names = ("q", "k", "v", "theta", "eta", "alpha")

    def run(backend: str) -> list[torch.Tensor]:
        state, said = None, []
        for part in (slice(0, 16), slice(16, 48)):
            y, state = neural_memory(
                *(problem.leaves[n][:, part] for n in names),
                problem.network,
                problem.params,
                state,
                chunk_size,
                backend,
            )
            said += [y, *state.weights, *state.momentum]  # MAC reads the state between calls too
        leaves = list(problem.leaves.values())
        return [*said, *torch.autograd.grad(sum(t.square().sum() for t in said), leaves)]

    for got, want in zip(run(backend), run("reference"), strict=True):
        assert distance(got, want) < EXACT


def test_a_state_with_other_weights_is_what_its_weights_say(backend: str) -> None:
    problem = make(BASE.with_(tokens=16, chunk_size=4, theta=0.002))
    _, state = problem.run(backend)
    changed = replace(state, weights=tuple(2 * w for w in state.weights))
    (y, _), (want, _) = (problem.run(name, state=changed) for name in (backend, "reference"))
    assert distance(y, want) < EXACT
    assert distance(problem.run(backend, state=state)[0], want) > 1e-3
