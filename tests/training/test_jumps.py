"""A gradient that is far longer than before is told, with the module where it begins."""

import warnings

import pytest
import torch
from torch import nn

from titanslab.training.jumps import JUMP, LEAST, STEPS, GradientJumps


@pytest.fixture
def model():
    model = nn.Sequential()
    for name in ("embed", "memory", "head"):
        model.add_module(name, nn.Linear(2, 2, bias=False))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


def look(jumps, model, norms, step):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        jumps.look(model, torch.tensor(norms), step)
    return [str(one.message) for one in said]


def test_a_jump_names_the_module_nearest_to_the_loss(model):
    jumps = GradientJumps()
    for step in range(LEAST):
        assert not look(jumps, model, [1.0, 1.0, 1.0], step)
    assert not look(jumps, model, [JUMP, JUMP / 2, 1.0], LEAST)  # long, and not yet a jump
    (said,) = look(jumps, model, [9e3, 4e3, 1.0], LEAST + 1)
    assert said.startswith("step 11: the gradient is 5,686 times as long as in steps before (norm 9,849); it begins in")
    assert "begins in memory. If the loss" in said
    assert said.endswith(
        "lower training.learning_rate or model.memory_theta_bias, or raise model.memory_chunk_coherence (at most 1)"
    )


def test_a_jump_elsewhere_has_no_advice_about_memories(model):
    jumps = GradientJumps()
    for step in range(LEAST):
        look(jumps, model, [1.0, 1.0, 1.0], step)
    (said,) = look(jumps, model, [1e3, 1.0, 1.0], LEAST)
    assert "begins in embed" in said
    assert said.endswith("lower training.learning_rate")


def test_one_warning_in_so_many_steps_and_none_at_the_start(model):
    jumps = GradientJumps()
    assert not look(jumps, model, [1e6, 1.0, 1.0], 1)
    for step in range(LEAST + 5):
        assert not look(jumps, model, [1.0, 1.0, 1.0], step)
    warned = [step for step in range(2 * STEPS) if look(jumps, model, [1e3 if step % 5 == 0 else 1.0, 1.0, 1.0], step)]
    assert warned == [0, STEPS]
