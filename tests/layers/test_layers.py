"""Compares norm, MLP, rotary positions, gates and the chunked cross entropy with their formulas."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from titanslab.layers import Attention, MemoryGate, RMSNorm, SwiGLU, apply_rotary, linear_cross_entropy, rotary_tables


def test_rms_norm_formula_and_dtype():
    norm, x = RMSNorm(6, eps=1e-3).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, atol=1e-12, rtol=0)
    low = RMSNorm(6).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), RMSNorm(6).double()(x.bfloat16().double()), atol=2e-2, rtol=0)


def test_swiglu_formula():
    mlp, x = SwiGLU(5, 7), torch.randn(2, 5)
    up, gate = x @ mlp.up_proj.weight.T, x @ mlp.gate_proj.weight.T
    torch.testing.assert_close(mlp(x), (up * gate * torch.sigmoid(gate)) @ mlp.down_proj.weight.T)


def test_swiglu_has_right_derivatives_and_holds_three_hidden_tensors():
    mlp = SwiGLU(5, 7).double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))
    assert torch.autograd.gradgradcheck(mlp, (x,))
    held: dict[int, int] = {}

    def note(t):
        if t.shape == (3, 7):
            held[t.untyped_storage().data_ptr()] = 1
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        mlp(x)
    assert len(held) == 3, "gate and up, and what the last product takes"


def test_rotary_scores_depend_on_distance_only_even_far_out():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i: int, j: int) -> float:
        qr = apply_rotary(q, rotary_tables(torch.tensor([[i]]), 16, 10000.0, torch.float32))
        kr = apply_rotary(k, rotary_tables(torch.tensor([[j]]), 16, 10000.0, torch.float32))
        return float((qr * kr).sum())

    near = score(7, 2)
    for offset in (1000, 10_000_000):
        assert abs(score(7 + offset, 2 + offset) - near) < 1e-5
    assert abs(score(8, 2) - near) > 1e-4


def test_rotary_is_a_rotation_of_pairs():
    x = torch.randn(2, 3, 5, 8)
    tables = rotary_tables(torch.arange(5)[None], 8, 100.0, torch.float32)
    out = apply_rotary(x, tables)
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    angle = 3 * 100.0 ** (-2 / 8)  # angle of the second pair at position 3
    a, b = x[0, 0, 3, 1], x[0, 0, 3, 5]
    torch.testing.assert_close(out[0, 0, 3, 1], a * math.cos(angle) - b * math.sin(angle))


@pytest.mark.parametrize("gate_type", ["mix", "sigmoid", "silu"])
def test_gate_formula(gate_type):
    gate, y, m = MemoryGate(4, gate_type, eps=1e-6), torch.randn(3, 4), torch.randn(3, 4)
    a = F.rms_norm(y, (4,), gate.y_norm.weight, 1e-6)
    b = F.rms_norm(m, (4,), gate.m_norm.weight, 1e-6)
    if gate_type == "mix":
        g = torch.sigmoid(a @ gate.gate_proj.weight.T)
        expected = g * a + (1 - g) * b
    else:
        expected = a * (torch.sigmoid(b) if gate_type == "sigmoid" else b * torch.sigmoid(b))
    torch.testing.assert_close(gate(y, m), expected)


def test_gate_names_what_is_allowed():
    with pytest.raises(ValueError, match="gate_type must be one of mix, sigmoid, silu; got 'product'"):
        MemoryGate(4, "product")


def test_attention_needs_whole_heads():
    with pytest.raises(ValueError, match="multiple of num_heads, got 10 and 4"):
        Attention(10, 4)


@pytest.mark.parametrize("num_items", [None, 5, torch.tensor(7)])
def test_linear_cross_entropy_equals_the_plain_one(num_items):
    hidden = torch.randn(23, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (23,))
    labels[::4] = -100
    loss = linear_cross_entropy(hidden, weight, labels, chunk_size=5, num_items=num_items)
    if num_items is None:
        plain = F.cross_entropy(hidden @ weight.T, labels)
    else:
        plain = F.cross_entropy(hidden @ weight.T, labels, reduction="sum") / num_items
    torch.testing.assert_close(loss, plain, atol=1e-12, rtol=0)
    for mine, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_linear_cross_entropy_spends_nothing_on_tokens_without_label(monkeypatch):
    module = importlib.import_module("titanslab.layers.linear_cross_entropy")
    seen, plain = [], module._chunk_loss
    monkeypatch.setattr(module, "_chunk_loss", lambda h, *rest: (seen.append(len(h)), plain(h, *rest))[1])
    hidden = torch.randn(50, 6, requires_grad=True)
    weight = torch.randn(11, 6, requires_grad=True)
    labels = torch.full((50,), -100)
    linear_cross_entropy(hidden, weight, labels, num_items=3).backward()
    assert seen == []
    assert not hidden.grad.any()
    assert not weight.grad.any()
    labels[[4, 17, 49]] = torch.tensor([1, 2, 3])
    linear_cross_entropy(hidden, weight, labels, chunk_size=2).backward()
    assert seen == [2, 1, 2, 1] or seen == [2, 1, 1, 2]  # chunk sizes in forward, and again in backward
    assert hidden.grad.any(-1).nonzero().flatten().tolist() == [4, 17, 49]


def test_linear_cross_entropy_counts_tokens():
    with pytest.raises(ValueError, match="the same number of tokens, got 3 and 4"):
        linear_cross_entropy(torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(4, dtype=torch.int64))
