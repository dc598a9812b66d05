"""States as trees of tensors: their names, `map`, and the conversion to tensors and back."""

from dataclasses import replace

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.memory import NeuralMemory, NeuralMemoryState
from titanslab.memory.state import named_tensors, tree_map
from titanslab.models.state import MixerState


@pytest.fixture
def state() -> NeuralMemoryState:
    torch.manual_seed(0)
    return NeuralMemory(12, 2, depth=2, chunk_size=4).update(torch.randn(3, 6, 12))


def test_names_lead_to_tensors_and_back(state: NeuralMemoryState) -> None:
    layers = [f"memory.{part}.{i}" for part in ("weights", "momentum", "chunk_weights") for i in range(2)]
    tails = [f"conv.{name}" for name in ("q", "k", "v", "read")]
    assert list(state.tensors()) == [*layers, "memory.offset", *tails]
    mixer = MixerState(state, state.memory.weights, torch.zeros(3, 1), torch.ones(3, 1), {"q": torch.ones(3, 2)})
    for value in (state.memory, state, mixer, MixerState(), MixerState(keys=torch.zeros(3, 1))):
        again = type(value).from_tensors(value.tensors())
        assert list(again.tensors()) == list(value.tensors())
        assert all(torch.equal(t, value.tensors()[name]) for name, t in again.tensors().items())
    assert type(again) is MixerState
    assert type(MixerState.from_tensors(mixer.tensors()).memory) is NeuralMemoryState


@pytest.mark.parametrize("lost", ["memory.offset", "memory.weights.0"])
def test_a_missing_tensor_is_an_error(state: NeuralMemoryState, lost: str) -> None:
    with pytest.raises((KeyError, TypeError)):
        NeuralMemoryState.from_tensors({name: t for name, t in state.tensors().items() if name != lost})


def test_tensors_of_something_else_are_named(state: NeuralMemoryState) -> None:
    with pytest.raises(TypeError, match=r"a NeuralMemoryState has the parts memory, conv, got a tensor of 'q_proj'"):
        NeuralMemoryState.from_tensors({"q_proj.weight": torch.ones(1), **state.tensors()})


def test_a_map_keeps_the_structure(state: NeuralMemoryState) -> None:
    twice = state.map(lambda t: t + t)
    assert all(torch.equal(t, 2 * state.tensors()[name]) for name, t in twice.tensors().items())
    assert tree_map(torch.neg, {"a": [None, torch.ones(1)]}) == {"a": [None, -1]}
    assert named_tensors({"a": [None, state.memory.offset]}) == {"a.1": state.memory.offset}
    last = state.map(lambda t: t[2:])
    assert torch.equal(last.memory.offset, state.memory.offset[2:])
    assert torch.equal(last.expand(4).conv["q"][3], state.conv["q"][2])


def test_rows_copies_and_bytes(state: NeuralMemoryState) -> None:
    rows = torch.tensor([2, 0])
    assert torch.equal(state.index_select(rows).memory.offset, state.memory.offset[rows])
    assert torch.equal(state.index_select(rows[:1]).expand(4).conv["q"][3], state.conv["q"][2])
    copy = state.clone()
    copy.conv["q"].zero_()
    assert state.conv["q"].any()
    assert state.batch_size == state.memory.batch_size == 3
    assert state.nbytes() == sum(t.numel() * t.element_size() for t in state.tensors().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_leaves_counters_alone(dtype):
    layer = NeuralMemory(16, 2, chunk_size=4096)
    with torch.no_grad():
        state = layer(torch.randn(1, 2049, 16))[1]
    for cast in (state.to(dtype), state.map(lambda t: t.to(dtype)), state.memory.to(dtype)):
        tensors = cast.tensors()
        counters = {name: t for name, t in tensors.items() if not t.is_floating_point()}
        assert [t.item() for t in counters.values()] == [2049]
        assert {t.dtype for t in tensors.values()} == {dtype, torch.int64}


def test_the_text_of_a_state_is_short(state: NeuralMemoryState) -> None:
    assert repr(state) == f"NeuralMemoryState(batch_size=3, float32, cpu, {state.nbytes() / 1024:,.1f} KiB)"
    assert repr(state.memory).startswith("MemoryState(batch_size=3, ")
    assert repr(MixerState()) == "MixerState(0.0 KiB)"


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 6])
@pytest.mark.parametrize("backend", ["auto", "chunked", "recurrent", "reference"])
def test_an_edit_of_a_state_does_not_edit_the_layer(tokens: int, backend: str) -> None:
    layer = NeuralMemory(16, 2, chunk_size=4, backend=backend)
    model = TitansForCausalLM(TitansConfig.preset("tiny", variant="mac", num_hidden_layers=1))
    before = [p.detach().clone() for p in (*layer.parameters(), *model.parameters())]
    with torch.no_grad():
        states = [layer.initial_state(), layer(torch.randn(1, tokens, 16))[1]]
        if tokens:
            states += model.read(torch.ones(1, tokens, dtype=torch.int64)).states
        for state in states:
            for tensor in state.tensors().values():
                tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, (*layer.parameters(), *model.parameters()), strict=True))


@pytest.mark.parametrize("backend", ["auto", "recurrent", "reference"])
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_running_chunk_of_a_layer_with_longer_chunks_is_refused(backend: str, tokens: int) -> None:
    long, short = NeuralMemory(12, 2, chunk_size=8), NeuralMemory(12, 2, chunk_size=4, backend=backend)
    x = torch.randn(2, 9, 12)
    refused = r"state.offset must be from 0 to 3, .* got 7..7; is it the state of a layer with another chunk_size"
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=refused):
            short(x[:, :tokens], long.update(x[:, :7]))
    short(x, long.update(x[:, :8]))  # at a boundary of both


def test_a_broken_state_is_refused_by_name(state: NeuralMemoryState) -> None:
    layer, x = NeuralMemory(12, 2, depth=2, chunk_size=4), torch.randn(3, 6, 12)
    memory = state.memory
    for broken, message in (
        (replace(state, conv=list(state.conv.values())), "state must hold a MemoryState and a dict"),
        (replace(state, memory=None), "state must hold a MemoryState and a dict"),
        (replace(state, memory=replace(memory, weights=None)), "state.weights must hold 2 tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, broken)


def test_no_tokens_are_read_with_a_mask_and_a_reset(state: NeuralMemoryState) -> None:
    layer, flags = NeuralMemory(12, 2, depth=2, chunk_size=4), torch.ones(3, 0, dtype=torch.bool)
    y, after = layer.retrieve(torch.randn(3, 0, 12), state, mask=flags, reset=flags)
    assert y.shape == (3, 0, 12)
    assert torch.equal(after.memory.weights[0], state.memory.weights[0])
