"""What PyTorch's differentiation can do with a memory: right, or refused by name, never silently wrong."""

import pytest
import torch
from torch.autograd import forward_ad

from titanslab import NeuralMemory, TitansConfig, TitansForCausalLM
from titanslab.memory import MemoryNetwork, MemoryParams, neural_memory

WIDE = {"dtype": torch.float64}
REFUSED = "have no second derivative, which create_graph=True asks for; use backend='recurrent'"
BACKENDS = ["auto", "chunked", "recurrent", "reference"]


def layer(backend, **options):
    torch.manual_seed(0)
    return NeuralMemory(8, 2, chunk_size=4, backend=backend, **options).double()


def tokens(*shape):
    return torch.randn(*shape, 8, generator=torch.Generator().manual_seed(1), **WIDE)


def slope(function, x, create=False):
    x = x.detach().requires_grad_()
    return x, torch.autograd.grad(function(x), x, create_graph=create)[0]


def second(function, x, v):
    """The Hessian of `function` at x times v, and what finite differences give."""
    at, gradient = slope(function, x, create=True)
    (found,) = torch.autograd.grad((gradient * v).sum(), at)
    return found, (slope(function, x + 1e-5 * v)[1] - slope(function, x - 1e-5 * v)[1]) / 2e-5


@pytest.mark.parametrize("outer", ["square", "sum"])
@pytest.mark.parametrize("count", [1, 2, 6, 600])
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_a_layer(backend, count, outer):
    if count == 600 and backend in ("recurrent", "reference"):
        count = 30
    memory, x, v = layer(backend), tokens(2, count), tokens(2, count) + 1

    def function(x):
        y = memory(x)[0]
        return (y.square() if outer == "square" else y).sum()

    if backend in ("auto", "chunked"):
        with pytest.raises(RuntimeError, match=REFUSED):
            second(function, x, v)
        return
    found, wanted = second(function, x, v)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("backend", ["recurrent", "reference"])
@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"norm": False}, {"gates_per_layer": True}])
def test_second_derivatives_by_a_parameter(backend, options):
    memory, x = layer(backend, **options), tokens(1, 7)
    weight = memory.q_proj.weight.detach().clone()

    def function(w):
        return torch.func.functional_call(memory, {"q_proj.weight": w}, (x,))[0].square().sum()

    found, wanted = second(function, weight, torch.ones_like(weight))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_a_read(backend):
    memory, x, v = layer(backend), tokens(2, 6), tokens(2, 6)
    state = memory.initial_state(2).detach()
    if backend in ("auto", "chunked"):
        with pytest.raises(RuntimeError, match=REFUSED):
            second(lambda x: memory.retrieve(x, state)[0].square().sum(), x, v)
        return
    found, wanted = second(lambda x: memory.retrieve(x, state)[0].square().sum(), x, v)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_of_the_operation(backend):
    torch.manual_seed(0)
    network = MemoryNetwork(depth=2, expansion=2)
    weights = tuple(torch.randn(2, *w, **WIDE) / w[0] ** 0.5 for w in network.widths(4))
    params = MemoryParams(weights, torch.ones(2, 4, **WIDE), torch.zeros(2, 4, **WIDE))
    q, k, v, direction = (torch.randn(1, 6, 2, 4, **WIDE) for _ in range(4))
    gates = [0.1 * torch.rand(1, 6, 2, **WIDE) for _ in range(3)]

    def function(k):
        return neural_memory(q, k, v, *gates, network, params, chunk_size=3, backend=backend)[0].square().sum()

    if backend in ("auto", "chunked"):
        with pytest.raises(RuntimeError, match=REFUSED):
            second(function, k, direction)
        return
    found, wanted = second(function, k, direction)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend, count):
    memory, xs = layer(backend), tokens(3, 2, count)
    if backend in ("chunked", "reference"):
        with pytest.raises(ValueError, match=rf"backend '{backend}' does not run inside torch\.func"):
            torch.func.vmap(lambda x: memory(x)[0])(xs)
        return
    found = torch.func.vmap(lambda x: memory(x)[0])(xs)
    torch.testing.assert_close(found, torch.stack([memory(x)[0] for x in xs]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_torch_func(backend):
    memory, x = layer(backend), tokens(2, 5)
    if backend in ("chunked", "reference"):
        with pytest.raises(ValueError, match=rf"backend '{backend}' does not run inside torch\.func"):
            torch.func.grad(lambda x: memory(x)[0].square().sum())(x)
        return
    found = torch.func.grad(lambda x: memory(x)[0].square().sum())(x)
    torch.testing.assert_close(found, slope(lambda x: memory(x)[0].square().sum(), x)[1])
    each = torch.func.vmap(torch.func.grad(lambda x: memory(x[None])[0].square().sum()))(x)
    torch.testing.assert_close(each, found)


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(backend, count):
    memory, x, v = layer(backend), tokens(2, count), tokens(2, count)

    def along(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(memory(forward_ad.make_dual(x, v))[0]).tangent

    with torch.no_grad():
        if backend in ("chunked", "reference"):
            with pytest.raises(ValueError, match=r"does not run inside torch\.func or forward-mode AD"):
                along(x)
            return
        found = along(x)
        wanted = (memory(x + 1e-6 * v)[0] - memory(x - 1e-6 * v)[0]) / 2e-6
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_vmap_and_gradients_go_on_from_a_state():
    memory, xs = layer("auto"), tokens(3, 2, 9)

    def split(x):
        y, state = memory(x[:, :5])
        return torch.cat((y, memory(x[:, 5:], state)[0]), 1)

    torch.testing.assert_close(torch.func.vmap(split)(xs), torch.stack([memory(x)[0] for x in xs]))
    found = torch.func.grad(lambda x: split(x).square().sum())(xs[0])
    torch.testing.assert_close(found, slope(lambda x: memory(x)[0].square().sum(), xs[0])[1])


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "attention"])
def test_models_inside_torch_func(variant):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "segment_len": 4}
    config = TitansConfig(variant=variant, chunk_size=4, num_persistent_tokens=1, **sizes)
    network = TitansForCausalLM(config).double().eval()
    weights = {name: p.detach() for name, p in network.named_parameters()}
    ids = torch.randint(0, 20, (2, 2, 9))

    def loss(weights, ids):
        logits = torch.func.functional_call(network, weights, (ids,)).logits  # with a cache, as eval mode returns it
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

    losses = torch.func.vmap(lambda ids: loss(weights, ids))(ids)
    torch.testing.assert_close(losses, torch.stack([loss(weights, row) for row in ids]))
    found = torch.func.grad(loss)(weights, ids[0])
    leaves = {name: p.clone().requires_grad_() for name, p in weights.items()}
    wanted = torch.autograd.grad(loss(leaves, ids[0]), list(leaves.values()))
    for name, gradient in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient)
    direction = {name: torch.ones_like(p) for name, p in weights.items()}
    slope = torch.func.jvp(lambda w: loss(w, ids[0]), (weights,), (direction,))[1]
    torch.testing.assert_close(slope, sum(gradient.sum() for gradient in wanted))


@pytest.mark.parametrize("variant", ["mal", "mag", "mac", "attention"])
def test_eager_attention_has_a_second_derivative(variant):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "segment_len": 4}
    config = TitansConfig(
        variant=variant, chunk_size=4, window_size=4, memory_backend="recurrent", attn_implementation="eager", **sizes
    )
    network = TitansForCausalLM(config).double()
    x, v = tokens(1, 9), tokens(1, 9).flip(1)
    found, wanted = second(lambda x: network(inputs_embeds=x).logits.square().sum(), x, v)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
