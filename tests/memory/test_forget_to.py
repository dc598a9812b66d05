"""forget_to="start": forgetting draws a memory to M_0, in every backend, in pieces, documents and padding."""

import pytest
import torch
from memory_cases import Case, distance, make, outputs_and_gradients, worst

from titanslab.memory import MemoryConfig, MemoryNetwork, MemoryParams, NeuralMemory, neural_memory
from titanslab.memory.backends import choose_backend
from titanslab.memory.chunked.op import chunked_memory
from tolerances import EXACT

BASE = Case(forget_to="start")
CASES = {
    "plain": BASE,
    "aligned": BASE.with_(tokens=80, seed=1),
    "online": BASE.with_(chunk_size=1, tokens=9),
    "one-token": BASE.with_(tokens=1, state=True),
    "long-chunk": BASE.with_(chunk_size=40, tokens=63, theta=0.002),
    "long-chunks": BASE.with_(chunk_size=16, tokens=80, theta=0.002),
    "long-chunks-kept": BASE.with_(chunk_size=32, tokens=96, depth=3, per_layer=True, grad_clip=0.5, theta=0.002),
    "long-chunks-ragged": BASE.with_(chunk_size=16, tokens=70, state=True, mask=True, per_layer=True, theta=0.002),
    "long-chunks-everything": BASE.with_(
        chunk_size=12, tokens=70, state=True, mask=True, reset=True, initial=True, per_layer=True, theta=0.002, seed=3
    ),
    "long-chunks-bare": BASE.with_(chunk_size=33, tokens=66, depth=1, residual=False, norm=False, theta=0.002),
    "few-tokens-of-a-long-chunk": BASE.with_(chunk_size=16, tokens=5, theta=0.002),
    "linear": BASE.with_(depth=1),
    "deep": BASE.with_(depth=3, per_layer=True, grad_clip=0.5, tokens=96, theta=0.002),
    "two-layers-no-norm": BASE.with_(norm=False, residual=False, tokens=16),
    "state": BASE.with_(state=True, per_layer=True),
    "documents": BASE.with_(reset=True, initial=True, tokens=33),
    "everything": BASE.with_(state=True, mask=True, reset=True, initial=True, per_layer=True, tokens=33, seed=3),
}


@pytest.mark.parametrize("backend", ["recurrent", "chunked", "auto"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_token_loop(name, backend):
    errors = worst(CASES[name], backend)
    assert max(errors.values()) < EXACT, {n: e for n, e in errors.items() if e >= EXACT}


def test_states_that_backward_reads_again():
    """So many chunks that forward keeps more than one state."""
    errors = worst(BASE.with_(chunk_size=16, tokens=1100, theta=0.0005, heads=1, batch=1), "chunked")
    assert max(errors.values()) < EXACT, {n: e for n, e in errors.items() if e >= EXACT}


def test_a_linear_memory_is_one_that_starts_at_0_and_learns_what_m_0_does_not_say():
    """||k (M_0 + D) - v||^2 is ||k D - (v - k M_0)||^2, and q (M_0 + D) is q M_0 + q D."""
    problem = make(BASE.with_(depth=1, residual=False, norm=False))
    q, k, v, *gates = (problem.leaves[n] for n in ("q", "k", "v", "theta", "eta", "alpha"))
    (start,) = problem.params.weights
    network = MemoryNetwork(1, residual=False, norm=False)
    zero = MemoryParams((torch.zeros_like(start),))

    def read(x):
        return torch.einsum("bthd,hde->bthe", x, start)

    for backend in ("reference", "chunked"):
        y, state = problem.run(backend)
        other, difference = neural_memory(q, k, v - read(k), *gates, network, zero, chunk_size=4, backend=backend)
        assert distance(y, other + read(q)) < EXACT
        assert distance(state.weights[0], difference.weights[0] + start) < EXACT


def test_forgetting_at_once_leaves_m_0_and_the_last_write():
    problem = make(BASE.with_(tokens=20))
    with torch.no_grad():
        problem.leaves["alpha"].fill_(1.0)
        problem.leaves["theta"][:, 10:].zero_()
        problem.leaves["eta"][:, 10:].zero_()
    for backend in ("reference", "recurrent", "chunked"):
        state = problem.run(backend)[1]
        for weight, start in zip(state.weights, problem.params.weights, strict=True):
            assert distance(weight, start.expand_as(weight)) < EXACT


def test_without_forgetting_both_are_the_same():
    ways = [make(Case(tokens=33, forget_to=name)) for name in ("start", "zero")]
    for problem in ways:
        with torch.no_grad():
            problem.leaves["alpha"].zero_()
    got, want = (outputs_and_gradients(problem, "chunked")[0] for problem in ways)
    assert all(distance(got[name], want[name]) < EXACT for name in want)


@pytest.mark.parametrize("depth", [1, 2])
def test_layers_read_in_pieces_as_whole(depth):
    torch.manual_seed(0)
    config = MemoryConfig(2, depth=depth, expansion=2, chunk_size=4, forget_to="start", half_lives=(2.0, 9.0))
    layer = NeuralMemory.from_config(16, config).double()
    x = torch.randn(2, 37, 16, dtype=torch.float64)
    whole, last, stats = layer(x, return_stats=True)
    state, found = None, []
    for start, end in ((0, 3), (3, 4), (4, 20), (20, 21), (21, 22), (22, 37)):
        y, state = layer(x[:, start:end], state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole)
    torch.testing.assert_close(state.memory.weights, last.memory.weights)
    zero = NeuralMemory.from_config(16, MemoryConfig(**config.to_dict() | {"forget_to": "zero"})).double()
    zero.load_state_dict(layer.state_dict())
    assert (zero(x)[0] - whole).abs().max() > 1e-4
    lives = -torch.log(torch.tensor(2.0)) / torch.log1p(-stats["alpha"])
    assert lives.max() < 12, "no half-life is lengthened where M_0 does not fade"
    with torch.no_grad():  # decoding
        y, state = layer(x[:, :5])
        y, _ = layer(x[:, 5:6], state)
    torch.testing.assert_close(y, whole[:, 5:6])


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("tokens", [16, 40])
def test_the_training_pass_of_a_layer(tokens, state):
    """It is the layer's slow way: outputs, the new state, and all gradients."""
    torch.manual_seed(0)
    config = MemoryConfig(2, expansion=2, chunk_size=16, forget_to="start", half_lives=(2.0, 9.0))
    layers = [NeuralMemory.from_config(16, config).double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].backend = "recurrent"
    x, before = (torch.randn(2, n, 16, dtype=torch.float64) for n in (tokens, 7))
    assert layers[0].takes_pass(x)
    assert not layers[1].takes_pass(x)
    assert not layers[0].takes_pass(x[:, :5])
    found = []
    for layer in layers:
        start = layer(before)[1] if state else None
        y, new = layer(x, start)
        parts = [y, *new.memory.weights, *new.memory.momentum, *new.memory.chunk_weights]
        loss = sum((t * torch.arange(t.numel(), dtype=t.dtype).cos().view_as(t)).sum() for t in parts)
        grads = torch.autograd.grad(loss, list(layer.parameters()))
        found.append([*parts, *grads])
    for got, want in zip(*found, strict=True):
        assert distance(got, want) < EXACT


def test_the_op_is_one_for_the_compiler():
    problem = make(BASE.with_(tokens=20, dtype=torch.float32))
    seen = []

    def keep(*arguments):
        seen.append(arguments)
        return chunked_memory(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("titanslab.memory.chunked.op.chunked_memory", keep)
        problem.run("chunked")
    arguments = [
        [t.detach() for t in a] if isinstance(a, list) else a.detach() if isinstance(a, torch.Tensor) else a
        for a in seen[0]
    ]
    assert len(arguments[7]) == 4, "weight and bias of the norm, and M_0 of two layers"
    torch.library.opcheck(chunked_memory, tuple(arguments), test_utils=("test_schema", "test_faketensor"))
    got = torch.compile(problem.run, backend="eager", fullgraph=True)("auto")[0]
    torch.testing.assert_close(got, problem.run("auto")[0])


def test_wrong_options():
    with pytest.raises(ValueError, match="forget_to must be one of zero, start; got 'strat'; did you mean 'start'"):
        MemoryConfig(2, forget_to="strat")
    problem = make(BASE)
    problem.forget_to = "none"
    with pytest.raises(ValueError, match="forget_to must be one of zero, start, got 'none'"):
        problem.run("auto")
    choice = choose_backend(torch.device("cpu"), torch.float32, 512, MemoryNetwork(), 8, 16, forget_to="start")
    assert choice.name == "chunked"
    choice = choose_backend(torch.device("cpu"), torch.float32, 512, MemoryNetwork(), 8, 4, forget_to="start")
    assert choice == ("chunked", "the exact parallel form, PyTorch operations: it forgets to the start")
