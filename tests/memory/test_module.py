"""Tests of the layer `NeuralMemory`: its laws, its state as a value, its training."""

from itertools import pairwise

import pytest
import torch
from memory_cases import distance

from titanslab.memory import NeuralMemory, NeuralMemoryState
from titanslab.memory.norms import rms_norm, unit_norm
from tolerances import EXACT


@pytest.fixture
def layer(request) -> NeuralMemory:
    torch.manual_seed(0)
    options = {"depth": 2, "expansion": 2, "chunk_size": 4} | getattr(request, "param", {})
    made = NeuralMemory(24, 3, **options).double()
    if made.theta_key_proj is not None:  # its initial value is 0
        torch.nn.init.normal_(made.theta_key_proj.weight, std=0.2)
    return made


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 37, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def start_of(layer: NeuralMemory, tokens: int = 5) -> NeuralMemoryState:
    g = torch.Generator().manual_seed(2)
    return layer.initial_state(1, torch.randn(tokens, layer.hidden_size, dtype=torch.float64, generator=g))


def same_state(a: NeuralMemoryState, b: NeuralMemoryState) -> float:
    other = b.tensors()
    return max(distance(t, other[n]) for n, t in a.tensors().items())


OPTIONS = [
    {},
    {"depth": 1},
    {"depth": 3, "gates_per_layer": False},
    {"conv_size": 1},
    {"gate_keys": True},
    {"gate_keys": True, "gates_per_layer": False, "momentum": False},
    {"momentum": False, "forgetting": False},
]


@pytest.mark.parametrize("layer", OPTIONS, indirect=True)
@pytest.mark.parametrize("cut", [1, 2, 4, 7, 36])
def test_split_anywhere(layer: NeuralMemory, x: torch.Tensor, cut: int) -> None:
    initial = start_of(layer)
    whole, end = layer(x, initial=initial)
    first, state = layer(x[:, :cut], initial=initial)
    saved = {n: t.clone() for n, t in state.tensors().items()}
    second, last = layer(x[:, cut:], NeuralMemoryState.from_tensors(saved), initial=initial)
    assert distance(torch.cat([first, second], 1), whole) < EXACT
    assert same_state(last, end) < EXACT


@pytest.mark.parametrize("layer", OPTIONS, indirect=True)
def test_padding_anywhere_is_as_if_it_were_not_there(layer: NeuralMemory, x: torch.Tensor) -> None:
    mask = torch.rand(2, 37, generator=torch.Generator().manual_seed(3)) > 0.4
    y, state = layer(x, mask=mask, initial=start_of(layer))
    for row in range(2):
        alone, end = layer(x[row : row + 1, mask[row]], initial=start_of(layer))
        assert distance(y[row, mask[row]], alone[0]) < EXACT
        assert same_state(end, state.map(lambda t, row=row: t[row : row + 1])) < EXACT
    assert not y[~mask].any()


@pytest.mark.parametrize("layer", OPTIONS, indirect=True)
def test_documents_are_separate_runs(layer: NeuralMemory, x: torch.Tensor) -> None:
    reset = torch.zeros(2, 37, dtype=torch.bool)
    reset[0, [11, 12]] = True
    reset[1, [0, 36]] = True
    initial = start_of(layer)
    y, state = layer(x, reset=reset, initial=initial)
    for row, bounds in enumerate([(0, 11, 12, 37), (0, 36, 37)]):
        runs = [layer(x[row : row + 1, a:b], initial=initial) for a, b in pairwise(bounds)]
        assert distance(y[row], torch.cat([r[0] for r in runs], 1)[0]) < EXACT
        assert same_state(runs[-1][1], state.map(lambda t, row=row: t[row : row + 1])) < EXACT


def test_the_future_does_not_change_the_past(layer: NeuralMemory, x: torch.Tensor) -> None:
    before = layer(x)[0]
    for place in (1, 5, 20, 36):
        changed = x.clone()
        changed[:, place] += 1
        after = layer(changed)[0]
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def test_rows_are_independent(layer: NeuralMemory, x: torch.Tensor) -> None:
    changed = x.clone()
    changed[1] += 1
    assert torch.equal(layer(changed)[0][0], layer(x)[0][0])


@pytest.mark.parametrize("layer", OPTIONS[:4], indirect=True)
def test_every_parameter_gets_a_gradient(layer: NeuralMemory, x: torch.Tensor) -> None:
    y, _ = layer(x, initial=start_of(layer))
    y.square().sum().backward()
    silent = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_gradients_flow_through_the_state(layer: NeuralMemory, x: torch.Tensor) -> None:
    whole = layer(x)[0][:, 20:].square().sum()
    _, state = layer(x[:, :20])
    split = layer(x[:, 20:], state)[0].square().sum()
    names = [n for n, _ in layer.named_parameters()]
    parameters = list(layer.parameters())
    for name, a, b in zip(
        names, torch.autograd.grad(whole, parameters), torch.autograd.grad(split, parameters), strict=True
    ):
        assert distance(b, a) < EXACT, name


def test_retrieve_reads_and_update_writes(layer: NeuralMemory, x: torch.Tensor) -> None:
    state = layer.update(x)
    read, after = layer.retrieve(x, state)
    assert read.shape == x.shape
    assert all(a is b for a, b in zip(after.memory.weights, state.memory.weights, strict=True))
    pieces, running = [], state
    for piece in x.split(5, dim=1):
        y, running = layer.retrieve(piece, running)
        pieces.append(y)
    assert distance(torch.cat(pieces, 1), read) < EXACT


def test_stats_are_per_token(layer: NeuralMemory, x: torch.Tensor) -> None:
    *_, stats = layer(x, return_stats=True)
    assert stats["loss"].shape == (2, 37, 3)
    assert all(stats[n].shape == (2, 37, 3, 2) for n in ("theta", "eta", "alpha"))
    assert all(((stats[n] >= 0) & (stats[n] <= 1)).all() for n in ("theta", "eta", "alpha"))


def test_state_takes_the_same_bytes_whatever_was_read(layer: NeuralMemory, x: torch.Tensor) -> None:
    assert layer(x[:, :1])[1].nbytes() == layer(x.repeat(1, 20, 1))[1].nbytes()


@pytest.mark.parametrize("layer", [{"depth": 4, "chunk_size": 16}], indirect=True)
@pytest.mark.parametrize("extreme", [-30.0, 30.0])
def test_no_nan_at_32k_tokens_with_gates_at_their_extremes(layer: NeuralMemory, extreme: float) -> None:
    layer = layer.float()
    with torch.no_grad():
        for gate in (layer.theta_proj, layer.eta_proj, layer.alpha_proj):
            gate.bias.fill_(extreme)
        layer.theta_proj.bias.fill_(30.0)
    x = torch.randn(1, 32768, 24, generator=torch.Generator().manual_seed(4), requires_grad=True)
    y, state = layer(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(t).all() for t in state.tensors().values())


def test_compiles_without_a_graph_break(layer: NeuralMemory, x: torch.Tensor) -> None:
    want, _ = layer(x[:, :32])
    grads = torch.autograd.grad(want.sum(), list(layer.parameters()))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, _ = compiled(x[:, :32])
    assert distance(got, want) < EXACT
    for a, b in zip(torch.autograd.grad(got.sum(), list(layer.parameters())), grads, strict=True):
        assert distance(a, b) < EXACT


def test_memory_imports_with_torch_alone() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['transformers'] = None; from titanslab.memory import *; "
        "assert not {'datasets', 'triton', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["rms_norm", "unit_norm"])
def test_norms_are_pytorchs(name: str) -> None:
    import torch.nn.functional as F

    from titanslab.memory import norms

    g = torch.Generator().manual_seed(5)
    x, weight = (torch.randn(*s, dtype=torch.float64, generator=g).requires_grad_() for s in ((2, 5, 3, 8), (3, 8)))
    if name == "rms_norm":
        got, want = norms.rms_norm(x, weight, 1e-5), F.rms_norm(x, (8,), eps=1e-5) * weight
    else:
        got, want = norms.unit_norm(x) * weight, F.normalize(x, dim=-1) * weight
    seed = torch.randn(got.shape, dtype=torch.float64, generator=g)
    assert distance(got, want) < EXACT
    for a, b in zip(*(torch.autograd.grad(out, (x, weight), seed) for out in (got, want)), strict=True):
        assert distance(a, b) < EXACT


@pytest.mark.parametrize("norm", [unit_norm, lambda x: rms_norm(x, torch.linspace(0.5, 2, 5).double(), 1e-6)])
def test_norms_have_right_second_derivatives(norm) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


def test_on_a_gpu_the_kernels_get_the_narrow_dtype_of_the_projections():
    """As under autocast: narrow projections and taps of float32. Device meta stands for any but a CPU."""
    layer = NeuralMemory(32, 2, chunk_size=4).to("meta")
    for name in "qkv":
        getattr(layer, f"{name}_proj").to(torch.bfloat16)
    x = torch.empty(2, 9, 32, dtype=torch.bfloat16, device="meta")
    with torch.no_grad():
        parts = layer._convolve("qkv", x, (), None, None, None)
    assert [t.dtype for t in parts] == [torch.bfloat16] * 6
