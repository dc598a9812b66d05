"""Optimiser, schedule and random state come back bit for bit, and nothing is unpickled."""

import pickle
import random

import numpy as np
import pytest
import torch

from titanslab.training import state_files


def small_optimizer(seed=0):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(3, 2)
    groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return layer, optimizer, schedule


def take_steps(layer, optimizer, schedule, count):
    for step in range(count):
        layer(torch.full((1, 3), float(step) + 0.3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def test_optimizer_and_schedule_go_on_bit_for_bit(tmp_path):
    layer, optimizer, schedule = small_optimizer()
    take_steps(layer, optimizer, schedule, 3)
    state_files.save_optimizer(tmp_path, optimizer, schedule)
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    take_steps(layer, optimizer, schedule, 4)

    other, optimizer2, schedule2 = small_optimizer(seed=1)
    other.load_state_dict(weights)
    state_files.load_optimizer(tmp_path, optimizer2, schedule2)
    take_steps(other, optimizer2, schedule2, 4)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)
    assert optimizer2.param_groups[0]["betas"] == (0.9, 0.95)


def test_random_state_goes_on(tmp_path):
    def draw():
        return (random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), random.gauss(0, 1))

    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draw()
    path = tmp_path / "sub" / "random.json"
    state_files.save_random_state(path)
    expected = [draw(), draw()]
    state_files.load_random_state(path)
    assert [draw(), draw()] == expected


def test_pickles_in_place_of_state_are_refused_without_being_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    for name in ("optimizer.safetensors", "optimizer.json", "scheduler.json", "random.json"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    _, optimizer, schedule = small_optimizer()
    with pytest.raises(ValueError, match=r"optimizer\.json' is broken"):
        state_files.load_optimizer(tmp_path, optimizer, schedule)
    (tmp_path / "optimizer.json").write_text('{"plain": {}, "param_groups": []}')
    with pytest.raises(ValueError, match=r"optimizer\.json' is broken"):  # the tensors beside it are
        state_files.load_optimizer(tmp_path, optimizer, schedule)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    state_files.save_optimizer(fresh, optimizer, schedule)
    (fresh / "scheduler.json").write_bytes((tmp_path / "scheduler.json").read_bytes())
    with pytest.raises(ValueError, match=r"scheduler\.json' is broken"):
        state_files.load_optimizer(fresh, optimizer, schedule)
    with pytest.raises(ValueError, match="broken"):
        state_files.load_random_state(tmp_path / "random.json")
    assert not (tmp_path / "run").exists()
