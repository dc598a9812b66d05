"""Muon for matrices: what its steps are, which weights it takes, and that a run resumes with it."""

import pytest
import torch
from torch import nn

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.training.muon import MuonWithAdamW, matrix_names, orthogonalised
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train

from .test_run import metrics, resumes_loss_for_loss


@pytest.mark.parametrize("shape", [(32, 32), (24, 80), (80, 24)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, 1.5, shape[1]))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.5 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert (orthogonalised(matrix) * (u @ v)).sum() > 0.8 * min(shape)


def test_a_step_is_that_of_the_definition_and_the_rest_is_adamw():
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.randn(40, 64)), nn.Parameter(torch.randn(64))
    twin = nn.Parameter(bias.detach().clone())
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = MuonWithAdamW([{"params": [bias], "weight_decay": 0.0}], [matrix], weight_decay=0.1, **options)
    plain = torch.optim.AdamW([twin], weight_decay=0.0, **options)
    mean = torch.zeros_like(matrix)
    for _ in range(3):
        matrix.grad, bias.grad = torch.randn(40, 64), torch.randn(64)
        twin.grad = bias.grad.clone()
        mean = 0.95 * mean + 0.05 * matrix.grad
        step = orthogonalised(0.05 * matrix.grad + 0.95 * mean) * 0.2 * 64**0.5
        wanted = matrix.detach() * (1 - 1e-2 * 0.1) - 1e-2 * step
        optimizer.step()
        plain.step()
        torch.testing.assert_close(matrix.detach(), wanted)
        assert torch.equal(bias, twin)
        assert step.square().mean().sqrt() == pytest.approx(0.2, rel=0.25)  # AdamW's size
    assert [group["matrices"] for group in optimizer.param_groups] == [False, True]


def test_projections_are_taken_and_gates_heads_and_tables_are_not():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 300, "conv_size": 4}
    for tied in (True, False):
        config = TitansConfig.preset("tiny", variant="mac", tie_word_embeddings=tied, **sizes)
        names = matrix_names(TitansForCausalLM(config))
        ends = {name.rpartition("mixer.")[2].rpartition("mlp.")[2] for name in names}
        assert {"memory.q_proj.weight", "memory.o_proj.weight", "o_proj.weight", "down_proj.weight"} <= ends
        for left in ("theta_proj", "alpha_proj", "embed", "lm_head", "conv1d", "norm", "persistent", "memory_weights"):
            assert not [name for name in names if left in name], left


@pytest.fixture
def muon(table):
    table["model"] |= {"hidden_size": 32}
    table["training"] |= {"optimizer": "muon"}
    return parse_recipe(table)


def test_a_run_resumes_loss_for_loss(muon, tmp_path, monkeypatch):
    resumes_loss_for_loss(muon, tmp_path, monkeypatch, stop=8, resumed_from=5)
    train(parse_recipe(muon.sections(), ['training.optimizer="adamw"']), tmp_path / "adamw")
    assert metrics(tmp_path / "adamw")[-1]["loss"] != metrics(tmp_path / "whole")[-1]["loss"]


def test_deepspeed_is_refused(muon, tmp_path, monkeypatch):
    from titanslab.training.trainer import TitansTrainer

    monkeypatch.setattr(TitansTrainer, "own_state", property(lambda self: False))
    with pytest.raises(ValueError, match=r'training\.optimizer is "muon", which DeepSpeed does not run'):
        train(muon, tmp_path / "run")
