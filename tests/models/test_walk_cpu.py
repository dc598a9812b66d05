"""MAC's walk as one node of autograd equals the loop of `mac.py`, and steps aside where it does not apply."""

import ctypes
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from titanslab import TitansConfig
from titanslab.memory.cpu.build import load
from titanslab.models import segments
from titanslab.models.call import make_call
from titanslab.models.mac import MemoryAsContext
from titanslab.models.walk_cpu import RING, SegmentArguments
from tolerances import EXACT

SHAPE = {"variant": "mac", "vocab_size": 32, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1}

START = {"memory_forget_to": "start", "chunk_size": 16}


def mixer_of(**options: Any) -> tuple[TitansConfig, MemoryAsContext]:
    torch.manual_seed(0)
    config = TitansConfig(**SHAPE | {"chunk_size": 8, "segment_len": 16, "num_persistent_tokens": 3} | options)
    return config, MemoryAsContext(config).double()


def outputs(config: TitansConfig, mixer: MemoryAsContext, x: torch.Tensor, **call: Any) -> list[torch.Tensor]:
    """The output, the stats, and the gradients of input and parameters."""
    x, stats = x.clone().requires_grad_(), {}
    y, _ = mixer(x, make_call(config, x, stats=stats, **call))
    total = y.square().sum() + stats["write"].square().sum()
    found = torch.autograd.grad(total, [x, *mixer.parameters()], allow_unused=True)
    return [y, *(stats[name] for name in sorted(stats)), *(g for g in found if g is not None)]


@pytest.fixture
def walks(monkeypatch) -> list[int]:
    """The numbers of segments of all walks."""
    seen, walk = [], segments.walk

    def counted(mixer: MemoryAsContext, x: torch.Tensor, *rest: Any) -> Any:
        seen.append(x.shape[1] // mixer.segment_len)
        return walk(mixer, x, *rest)

    monkeypatch.setattr(segments, "walk", counted)
    return seen


@pytest.mark.parametrize(
    ("batch", "tokens", "options"),
    [
        (1, 64, {}),
        (2, 70, {}),  # a last segment that is not whole goes through the loop
        (1, 16 * (RING + 3), {"memory_depth": 1}),
        (2, 48, {"memory_depth": 3, "num_persistent_tokens": 0}),
        (3, 64, {"chunk_size": 32, "segment_len": 32}),  # the chunk loop keeps activations
        (1, 96, {"segment_len": 48, "chunk_size": 16}),  # a block of attention that is not whole
        (2, 64, {"num_memory_heads": 2, "memory_head_dim": 8, "memory_gates_per_layer": False}),
        (2, 64, {"memory_norm": False, "memory_residual": False, "memory_grad_clip": None}),
        (2, 64, {"memory_momentum": False, "gate_type": "silu"}),
        (2, 64, {"memory_forgetting": False, "conv_size": 2}),
        (2, 16 * (RING + 3), START),
        (2, 64, {**START, "memory_depth": 1, "memory_norm": False, "memory_residual": False}),
        (1, 64, {**START, "memory_depth": 3, "segment_len": 32, "memory_gates_per_layer": False}),
    ],
)
def test_it_equals_the_loop(monkeypatch, walks, batch, tokens, options) -> None:
    config, mixer = mixer_of(**options)
    x = torch.randn(batch, tokens, 24, dtype=torch.float64)
    got = outputs(config, mixer, x, write_scale=0.7)
    assert walks == [tokens // config.segment_len]
    monkeypatch.setattr(segments, "takes_walk", lambda *_: False)
    want = outputs(config, mixer, x, write_scale=0.7)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= EXACT * b.abs().max()


@pytest.mark.parametrize("options", [{}, START], ids=["to-zero", "to-start"])
def test_state_goes_in_and_out_with_its_gradient(monkeypatch, walks, options) -> None:
    """A call that keeps its state walks over all segments but the last, whose keys and values the next call needs."""
    config, mixer = mixer_of(**options)
    x = torch.randn(2, 96, 24, dtype=torch.float64, requires_grad=True)

    def run() -> list[torch.Tensor]:
        y, state = mixer(x[:, :48], make_call(config, x[:, :48]), return_state=True)
        start = torch.full((2,), 48)
        z, end = mixer(x[:, 48:], make_call(config, x[:, 48:], start=start), state, return_state=True)
        total = z.square().sum() + sum(w.square().sum() for w in end.memory.memory.momentum)
        return [y, z, *end.tensors().values(), *torch.autograd.grad(total, [x, *mixer.parameters()])]

    got = run()
    assert walks == [2, 2]
    monkeypatch.setattr(segments, "takes_walk", lambda *_: False)
    for a, b in zip(got, run(), strict=True):
        assert (a - b).abs().max() <= EXACT * b.abs().max()


def test_what_it_holds_for_backward(walks) -> None:
    """The state once a segment; no scores of attention, and no tensor of the memory's hidden width for each token."""
    config, mixer = mixer_of(segment_len=32, memory_expansion=5)
    x, held = torch.randn(1, 192, 24, dtype=torch.float64, requires_grad=True), {}

    def note(t: torch.Tensor) -> torch.Tensor:
        held[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        mixer(x, make_call(config, x))
    assert walks == [6]
    state = [t for t in held.values() if t.shape[-2:] in ((2 * 8, 40), (8, 40), (2 * 40, 8), (40, 8))]
    per_token = [t for t in held.values() if t.numel() >= 192 and not any(t is s for s in state)]
    assert 6 <= sum(t.numel() for t in state) / (4 * 3 * 8 * 40) <= 8
    assert max(t.numel() for t in per_token) <= 192 * 5 * 24  # the five products of the input


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads, walks) -> None:
    config, mixer = mixer_of()
    x, before = torch.randn(2, 64, 24, dtype=torch.float64), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = outputs(config, mixer, x)
        torch.set_num_threads(3 - threads)
        for a, b in zip(got, outputs(config, mixer, x), strict=True):
            assert (a - b).abs().max() <= EXACT * b.abs().max()
    finally:
        torch.set_num_threads(before)
    assert walks == [4, 4]


def test_gradient_checkpointing_changes_nothing(walks) -> None:
    config, mixer = mixer_of()
    x = torch.randn(2, 64, 24, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        return mixer(x, make_call(config, x))[0].square().sum()

    plain = torch.autograd.grad(run(x), [x, *mixer.parameters()])
    again = torch.autograd.grad(checkpoint(run, x, use_reentrant=False), [x, *mixer.parameters()])
    assert walks == [4, 4, 4]
    for a, b in zip(again, plain, strict=True):
        assert torch.equal(a, b)


def test_it_steps_aside(walks) -> None:
    """Where documents begin, chunks straddle segments, a projection has a hook, or nothing is to be learned."""
    x = torch.randn(1, 64, 24, dtype=torch.float64)
    config, mixer = mixer_of()
    reset = torch.zeros(1, 64, dtype=torch.bool)
    reset[0, 30] = True
    outputs(config, mixer, x, reset=reset)
    with torch.no_grad():
        mixer(x, make_call(config, x))
    mixer.attention.k_proj.register_forward_hook(lambda _module, _inputs, output: output)
    outputs(config, mixer, x)
    outputs(*mixer_of(segment_len=20), x)
    outputs(*mixer_of(memory_gate_keys=True), x)
    assert walks == []


def test_python_and_the_kernel_agree_on_the_arguments() -> None:
    handle = load(torch.float64, "segment").handle
    assert handle is not None
    assert handle.titans_arguments_size() == ctypes.sizeof(SegmentArguments)
