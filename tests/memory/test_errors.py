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
