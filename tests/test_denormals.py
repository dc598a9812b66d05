"""Denormal numbers: 0 in training and in threads of torch, and themselves everywhere else."""

import subprocess
import sys

import torch

from titanslab.data import byte_tokenizer
from titanslab.denormals import as_zero
from titanslab.evaluation import perplexity
from titanslab.training import run
from titanslab.training.recipe import parse_recipe

SMALL = torch.tensor(1e-30)


def product() -> float:
    return float(SMALL * torch.tensor(1e-10))


def test_they_are_0_inside_alone():
    assert product() > 0
    with as_zero(), as_zero():
        assert product() == 0
    assert product() > 0
    assert float("1e-310") > 0


def test_training_and_perplexity_take_them_for_0(tmp_path, monkeypatch):
    seen = []
    (tmp_path / "text.txt").write_text("one two three " * 40)
    model = {"preset": "tiny", "variant": "lmm", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    data = {"train": str(tmp_path / "text.txt"), "tokenizer": "byte", "sequence_length": 16}
    table = {"model": model, "data": data, "training": {"steps": 1, "batch_size": 1, "cpu": True}}
    real = run.make_trainer

    def made(*given, **named):
        trainer = real(*given, **named)
        step = trainer.training_step
        trainer.training_step = lambda *a, **k: (seen.append(product()), step(*a, **k))[1]
        return trainer

    monkeypatch.setattr(run, "make_trainer", made)
    run.train(parse_recipe(table, [], origin="test"), tmp_path / "run")
    assert seen == [0.0]
    from titanslab.runs.loading import open_model

    network, _ = open_model(tmp_path / "run", "cpu")
    hook = network.register_forward_pre_hook(lambda *_: seen.append(product()))
    perplexity.evaluate_perplexity(network, byte_tokenizer(), ["one two"], context_length=16)
    hook.remove()
    assert seen == [0.0, 0.0]
    assert product() > 0


def test_threads_of_a_command_take_them_for_0():
    code = """
import torch
from titanslab.denormals import start_threads
torch.set_num_threads(2)
start_threads()
x = torch.full((1 << 20,), 1e-30) * 1e-10
kept = (x != 0).float().mean().item()
from titanslab.denormals import as_zero
with as_zero():
    y = torch.full((1 << 20,), 1e-30) * 1e-10
print(kept, (y != 0).float().mean().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outside, inside = map(float, done.stdout.split())
    assert inside == 0
    assert outside <= 0.5
