"""The price of writes rises over the first steps of a run, and a resumed run pays what a whole one pays."""

import json

import pytest
import torch

from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train


def table(**training):
    options = {"min_length": 380, "same_length_rows": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return {
        "model": {"variant": "lmm", "memory_write_cost": 50.0, **sizes},
        "data": {"task": "niah", "sequence_length": 448, "task_options": options},
        "training": {"steps": 4, "batch_size": 2, "log_every": 1, "save_every": 2, "cpu": True, **training},
    }


def losses(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found if "loss" in line]


def test_the_price_rises_from_nothing(tmp_path):
    train(parse_recipe(table(learning_rate=1e-9)), tmp_path / "full")
    train(parse_recipe(table(learning_rate=1e-9, write_cost_warmup=2)), tmp_path / "rising")
    train(parse_recipe(table(learning_rate=1e-9) | {"model": table()["model"] | {"memory_write_cost": 0.0}}),
          tmp_path / "free")  # fmt: skip
    free, rising, full = (torch.tensor(losses(tmp_path / name)) for name in ("free", "rising", "full"))
    price = (full - free)[0]  # theta's gate hardly moves
    assert price > 10
    torch.testing.assert_close(rising - free, price * torch.tensor([0.0, 0.5, 1.0, 1.0]), atol=0.05, rtol=0.01)


def test_a_resumed_run_pays_the_same(tmp_path):
    settings = {"write_cost_warmup": 4}
    train(parse_recipe(table(**settings)), tmp_path / "whole")
    train(parse_recipe(table(**settings)), tmp_path / "cut")
    for folder in (tmp_path / "cut" / "checkpoints").iterdir():
        if folder.name.endswith("4"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    train(parse_recipe(table(**settings)), tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut")[-1] == losses(tmp_path / "whole")[-1]


def test_a_negative_warmup_is_refused():
    with pytest.raises(ValueError, match=r"training\.write_cost_warmup must be a whole number of at least 0"):
        parse_recipe(table(write_cost_warmup=-1))
