"""read_before_write: each token reads the memory of the tokens before it, in any pieces, documents and padding."""

import pytest
import torch

from titanslab.memory import MemoryConfig, NeuralMemory

CHUNK = 4


@pytest.fixture
def layer():
    torch.manual_seed(0)
    config = MemoryConfig(2, depth=2, expansion=2, chunk_size=CHUNK, read_before_write=True, theta_bias=0.0)
    return NeuralMemory.from_config(16, config).double()


@pytest.fixture
def x():
    return torch.randn(2, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_tokens(layer, x, state=None):
    """Each token reads the state of the tokens before it, without a write, and is then written."""
    state = layer.initial_state(x.shape[0]) if state is None else state
    reads = []
    for t in range(x.shape[1]):
        _, new = layer(x[:, t : t + 1], state)
        frozen, _ = layer(x[:, t : t + 1], state, learn=False)
        reads.append(frozen)
        state = new
    return torch.cat(reads, 1), state


def test_a_token_reads_what_was_written_before_it(layer, x):
    wanted, state = by_tokens(layer, x)
    got, end = layer(x)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(end.memory.weights, state.memory.weights, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cut", [1, 3, 4, 10])
def test_pieces_change_nothing(layer, x, cut):
    whole, end = layer(x)
    first, state = layer(x[:, :cut])
    second, last = layer(x[:, cut:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(last.memory.weights[0], end.memory.weights[0])


def test_the_first_token_of_a_document_reads_the_start(layer, x):
    reset = torch.zeros(2, 11, dtype=torch.bool)
    reset[0, 5] = reset[1, 0] = reset[1, 9] = True
    got, _ = layer(x, reset=reset)
    torch.testing.assert_close(got[:1], torch.cat((layer(x[:1, :5])[0], layer(x[:1, 5:])[0]), 1))
    torch.testing.assert_close(got[1:], torch.cat((layer(x[1:, :9])[0], layer(x[1:, 9:])[0]), 1))


def test_padding_is_as_if_it_were_not_there(layer, x):
    mask = torch.tensor([[True] * 7 + [False] * 4, [False] * 2 + [True] * 9])
    got, _ = layer(x, mask=mask)
    torch.testing.assert_close(got[0, :7], layer(x[:1, :7])[0][0])
    torch.testing.assert_close(got[1, 2:], layer(x[1:, 2:])[0][0])
    assert bool((got[~mask] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_those_of_the_token_loop(layer, x, dtype):
    layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
    weight = torch.randn_like(x)

    def run(backend):
        layer.backend = backend
        layer.zero_grad()
        x.grad = None
        y, _ = layer(x)
        (y * weight).sum().backward()
        return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]

    for a, b in zip(run("auto"), run("reference"), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4 if dtype == torch.float32 else 1e-10, rtol=1e-3)


def test_it_is_not_the_read_after_the_write(layer, x):
    after = NeuralMemory.from_config(16, MemoryConfig(2, depth=2, expansion=2, chunk_size=CHUNK, theta_bias=0.0))
    after = after.double()
    after.load_state_dict(layer.state_dict())
    assert not torch.allclose(after(x)[0], layer(x)[0], atol=1e-3)
    torch.testing.assert_close(after(x)[1].memory.weights[0], layer(x)[1].memory.weights[0])
