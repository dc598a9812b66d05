"""Errors name the argument, its value and the allowed values."""

import pytest
import torch
from memory_cases import Case, make

from titanslab.memory import MemoryNetwork, NeuralMemory, choose_backend


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.leaves.update(k=p.leaves["k"][:, :3]), r"k must have shape \[2, 17, 3, 8\], got \[2, 3, 3, 8\]"),
        (lambda p: p.leaves.update(theta=p.leaves["theta"][..., :1]), "theta must have shape"),
        (lambda p: setattr(p, "chunk_size", 0), "chunk_size must be an integer of at least 1, got 0"),
        (lambda p: setattr(p, "mask", torch.ones(2, 17)), "mask must be bool"),
        (lambda p: setattr(p, "network", MemoryNetwork(depth=3)), "params.weights must hold 3"),
        (lambda p: setattr(p, "network", MemoryNetwork(norm=False, expansion=2)), "norm_weight must be None"),
        (lambda p: setattr(p, "state", make(Case(batch=1, state=True)).state), "state holds 1 rows"),
    ],
)
def test_arguments_are_named(change, message: str) -> None:
    problem = make(Case())
    change(problem)
    with pytest.raises(ValueError, match=message):
        problem.run("auto")


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ValueError, match="reference, recurrent, chunked, triton, auto"):
        make(Case()).run("fast")


@pytest.mark.parametrize("options", [{"depth": 0}, {"expansion": 0}, {"grad_clip": -1.0}])
def test_network_checks_itself(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MemoryNetwork(**options)


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads"):
        NeuralMemory(10, 3)


def test_auto_says_why() -> None:
    name, reason = choose_backend(torch.device("cpu"), torch.float32, 512, MemoryNetwork(), 64, 16)
    assert name == "chunked"
    assert reason
    assert choose_backend(torch.device("cpu"), torch.float32, 1, MemoryNetwork(), 64, 16).name == "recurrent"


def test_a_layer_names_what_is_no_tensor_of_flags_and_what_autocast_does_not_cast() -> None:
    layer, x = NeuralMemory(16, 2), torch.randn(2, 9, 16)
    with pytest.raises(ValueError, match=r"mask must be a bool tensor \[2, 9\], got list"):
        layer(x, mask=[[True] * 9] * 2)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"x is torch.float64, the layer"):
        layer(x.double())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_of_torch_jit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.jit.trace cannot record a NeuralMemory; use torch.export"):
        torch.jit.trace(NeuralMemory(16, 2), torch.randn(2, 9, 16))


def test_the_function_says_that_a_layers_state_holds_its_own() -> None:
    problem = make(Case())
    problem.state = NeuralMemory(16, 2).initial_state(2)
    with pytest.raises(ValueError, match=r"state must be a MemoryState, got NeuralMemoryState; .* in its .memory"):
        problem.run("auto")


X = torch.randn(2, 9, 16)
FIXES = {
    "one row": (lambda m: m(X[0]), r"got \[9, 16\]; one row is x.unsqueeze\(0\)"),
    "another width": (
        lambda m: m(X[..., 1:]),
        r"got \[2, 9, 15\]; project it, or make the layer with another hidden_size",
    ),
    "token ids": (lambda m: m(X.long()), "x is torch.int64, the layer torch.float32; embed whole numbers"),
    "a wide x": (lambda m: m(X.double()), r"cast one of them, such as x.to\(torch.float32\)"),
    "a flag a row": (lambda m: m(X, reset=torch.ones(2).bool()), r"got \[2\]; one flag a row is reset\[:, None\]"),
    "a mask of floats": (lambda m: m(X, mask=torch.ones(2, 9)), r"got torch.float32; use mask.bool\(\)"),
    "lengths as a list": (lambda m: m(X, lengths=[1, 2]), r"lengths must be int64 \[2\], got list; give torch.tensor"),
    "the whole result": (lambda m: m(X, m(X)), r"got tuple; forward returns \(y, state\)"),
    "tensors": (lambda m: m(X, m(X)[1].tensors()), "got dict; use NeuralMemoryState.from_tensors"),
    "its memory": (lambda m: m(X, m(X)[1].memory), "got MemoryState; give the whole state"),
    "three rows": (lambda m: m(X, m.initial_state(3)), r"state holds 3 rows, x has 2; .* initial_state\(2\) starts"),
    "no flag": (lambda m: m(X, learn="no"), "learn must be True or False, got 'no'"),
    "no count": (lambda m: m.initial_state(2.0), "batch_size must be an integer of at least 0, got 2.0"),
    "a start of rows": (lambda m: m.initial_state(2, X), r"persistent must have shape \[N_p, 16\], got \[2, 9, 16\]"),
}


@pytest.mark.parametrize("case", FIXES)
def test_an_error_of_a_layer_says_how_to_mend_the_call(case: str) -> None:
    call, message = FIXES[case]
    with pytest.raises(ValueError, match=message):
        call(NeuralMemory(16, 2))


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("other", [{"depth": 1}, {"expansion": 2}, {"num_heads": 4}])
def test_a_state_of_another_layer_is_refused_with_writes_and_without(other: dict, learn: bool) -> None:
    layer, state = NeuralMemory(16, 2), NeuralMemory(16, **{"num_heads": 2, **other}).update(X)
    with pytest.raises(ValueError, match=r"state.weights.* must .*is it the state of another layer"):
        layer(X, state, learn=learn)
    with pytest.raises(ValueError, match=r"initial.weights.* must .*is it the state of another layer"):
        layer(X, initial=state, learn=learn)
