"""Checks of `MemoryConfig`, and a layer that is built from it."""

import inspect

import pytest
import torch

from titanslab.memory import MemoryConfig, NeuralMemory

WRONG = [
    ("depth", 0, "must be an integer of at least 1, got 0"),
    ("num_heads", True, "must be an integer of at least 1, got True"),
    ("head_dim", 0, "must be an integer of at least 1, got 0"),
    ("norm", 1, "must be True or False, got 1"),
    ("grad_clip", -1.0, "must be a positive number, got -1.0"),
    ("theta_bias", float("nan"), "must be a number between -100 and 100, got nan"),
    ("chunk_coherence", 1.5, "must be a number from 0 to 1, got 1.5"),
    ("half_lives", 5.0, "must be [shortest, longest] in tokens"),
    ("half_lives", (9.0, 4.0), "must be [shortest, longest] in tokens"),
    ("backend", "chunk", "must be one of auto, reference, recurrent, chunked, triton; got 'chunk'; did you"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "problem"), WRONG)
def test_an_impossible_value_names_the_option(name, value, problem) -> None:
    with pytest.raises(ValueError) as error:
        NeuralMemory(24, **({"num_heads": 3} | {name: value}))
    assert str(error.value).startswith(f"{name} {problem}")


def test_a_layer_takes_the_options_one_by_one_or_as_a_config() -> None:
    parameters = list(inspect.signature(NeuralMemory).parameters)
    assert parameters == ["hidden_size", *inspect.signature(MemoryConfig).parameters]
    config = MemoryConfig(3, 1, 2, 8, gate_keys=True, half_lives=(4.0, 9.0))
    layers = []
    for make in (
        lambda: NeuralMemory.from_config(24, config),
        lambda: NeuralMemory(24, 3, 1, 2, 8, gate_keys=True, half_lives=(4.0, 9.0)),
        lambda: NeuralMemory(hidden_size=24, **config.to_dict()),
    ):
        torch.manual_seed(0)
        layers.append(make())
    assert all(layer.config == config for layer in layers)
    first = layers[0].state_dict()
    for layer in layers[1:]:
        assert all(torch.equal(t, first[name]) for name, t in layer.state_dict().items())
    with pytest.raises(TypeError, match="dept"):
        NeuralMemory(24, 3, dept=1)
