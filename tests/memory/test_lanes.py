"""Many small heads in short chunks, for which each vector lane of the compiled kernel computes a memory of its own."""

import pytest
import torch
from memory_cases import Case, distance, loss_of_precision, make, outputs_and_gradients, worst

import titanslab.memory.chunked.op as chunked_module
from titanslab.memory import NeuralMemory
from titanslab.memory import layer as module
from titanslab.memory.cpu import chunked as native
from tolerances import EXACT

# 33 memories: two whole vectors of lanes and one lane, or more in float64
MANY = Case(batch=11, heads=3, theta=0.01)


@pytest.fixture
def lanes(monkeypatch) -> list[bool]:
    """Whether each call of the kernel since then was in lanes."""
    calls, run = [], native.run

    def spy(arguments, *rest, **named) -> None:
        calls.append(bool(arguments.lanes))
        run(arguments, *rest, **named)

    monkeypatch.setattr(native, "run", spy)
    return calls


@pytest.mark.parametrize("tokens", [1, 7, 12, 33])
@pytest.mark.parametrize("chunk_size", range(1, native.LANE_CHUNK + 1))
def test_lanes_are_the_token_loop(lanes, chunk_size, tokens) -> None:
    case = MANY.with_(chunk_size=chunk_size, tokens=tokens, seed=100 * chunk_size + tokens)
    errors = worst(case, "chunked")
    assert lanes == [True, True]
    assert max(errors.values()) < EXACT, errors


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 1, "chunk_size": 1},
        {"depth": 3, "expansion": 1, "per_layer": True},
        {"head_dim": 5, "norm": False},
        {"head_dim": 17, "residual": False, "depth": 1},
        {"grad_clip": 0.5, "per_layer": True},
        {"grad_clip": 3.0, "norm": False, "residual": False},
    ],
)
def test_every_option_runs_in_lanes(lanes, monkeypatch, changes) -> None:
    """Also where backward computes the states of a row in several groups."""
    for budget in (native.LANE_BYTES, 1):
        monkeypatch.setattr(native, "LANE_BYTES", budget)
        errors = worst(MANY.with_(**changes), "chunked")
        assert max(errors.values()) < EXACT, errors
    assert all(lanes)
    assert len(lanes) == 4


def test_lanes_take_no_padding_documents_or_open_chunk(lanes) -> None:
    for case in (MANY.with_(mask=True), MANY.with_(reset=True, initial=True), MANY.with_(state=True)):
        assert max(worst(case, "chunked").values()) < EXACT
    assert not any(lanes)


def test_lanes_are_for_many_small_heads_in_short_chunks() -> None:
    assert native.lane_group(32, [1024, 1024], 4) == 8
    assert native.lane_group(32, [512], 1) == 32
    assert native.lane_group(31, [1024, 1024], 4) == 0
    assert native.lane_group(32, [1024, 4096], 4) == 0
    assert native.lane_group(32, [1024, 1024], 9) == 0


def test_lanes_are_as_exact_in_float32(lanes) -> None:
    case = MANY.with_(head_dim=16, tokens=42, theta=0.002, dtype=torch.float32)
    truth, slopes = outputs_and_gradients(make(case.with_(dtype=torch.float64)), "reference")
    outputs, gradients = outputs_and_gradients(make(case), "chunked")
    errors = {n: loss_of_precision(t, {**truth, **slopes}[n]) for n, t in {**outputs, **gradients}.items() if t.any()}
    assert lanes == [True, True]
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("tokens", [12, 18])
def test_the_op_knows_its_shapes_in_lanes(monkeypatch, tokens) -> None:
    q = torch.randn(11, tokens, 3, 8)
    gates = 0.1 * torch.rand(3, 1, 11, tokens, 3)
    state = [0.1 * torch.randn(33, 16, 8)]
    arguments = (q, q, q, gates, state, [], state, [], None, None, None, 4, True, None, "cpu", True)
    for budget in (native.LANE_BYTES, 1):
        monkeypatch.setattr(native, "LANE_BYTES", budget)
        torch.library.opcheck(chunked_module.chunked_memory, arguments, test_utils=("test_faketensor",))


def gradients_of(layer: NeuralMemory, x: torch.Tensor, **given) -> list[torch.Tensor]:
    y, end, stats = layer(x, return_stats=True, **given)
    tensors = [y, *end.conv.values(), *end.memory.weights, *end.memory.momentum, *end.memory.chunk_weights]
    total = sum(t.square().sum() for t in tensors)
    return [*tensors, end.memory.offset, *stats.values(), *torch.autograd.grad(total, [x, *layer.parameters()])]


@pytest.mark.parametrize("tokens", [5, 12, 27])
@pytest.mark.parametrize(
    ("options", "persistent"),
    [
        ({}, False),
        ({"depth": 1, "chunk_size": 1, "gates_per_layer": False}, False),
        ({"norm": False, "residual": False, "momentum": False, "conv_size": 2}, False),
        ({"forgetting": False, "conv_size": 3}, True),
        ({"gate_keys": True}, False),
    ],
)
def test_the_layer_is_the_same_in_lanes(monkeypatch, lanes, options, persistent, tokens) -> None:
    """All rows share a start, whose gradient the kernel sums; without a state it also makes q, k and v."""
    torch.manual_seed(0)
    layer = NeuralMemory(24, 3, head_dim=9, **{"chunk_size": 4, "expansion": 2, "depth": 2, **options}).double()
    if layer.theta_key_proj is not None:
        torch.nn.init.normal_(layer.theta_key_proj.weight)
    x = torch.randn(11, tokens, 24, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(3, 24, dtype=torch.float64)

    def run() -> list[torch.Tensor]:
        return gradients_of(layer, x, initial=layer.initial_state(1, vectors) if persistent else None)

    assert layer.takes_pass(x)
    got = run()
    assert any(lanes)
    monkeypatch.setattr(native, "lane_group", lambda *_: 0)
    blocks = run()
    monkeypatch.setattr(module, "takes_features", lambda *_: False)
    monkeypatch.setattr(module, "takes_layer", lambda *_: False)
    for want in (blocks, run()):
        for a, b in zip(got, want, strict=True):
            assert distance(a.double(), b.double()) < EXACT


def test_threads_do_not_change_a_gradient() -> None:
    torch.manual_seed(0)
    layer, x = NeuralMemory(64, 4, chunk_size=4, expansion=2), torch.randn(70, 14, 64, requires_grad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = layer(x)[0]
            tensors = [*layer.memory_weights, *(getattr(layer, f"{n}_conv1d").weight for n in "qkv")]
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    # the products before and after the memory may be divided among the threads
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_step_without_a_use_of_the_state_trains(lanes) -> None:
    """Anomaly detection finds no entry that nobody wrote."""
    layer, x = NeuralMemory(64, 4, chunk_size=4, expansion=2), torch.randn(8, 12, 64)
    with torch.autograd.detect_anomaly(check_nan=True):
        layer(x)[0].square().mean().backward()
    assert lanes == [True, True]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())
