"""Compares the cost model with the parameters, the cache and a FLOP counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.memory import MemoryNetwork, backends
from titanslab.models.cost import cache_bytes, chunk_flops, cost, forward_flops, least_parameters

VARIANTS = ["lmm", "mal", "mag", "mac", "attention", "attention_conv"]
OPTIONS = [
    {},
    {"memory_depth": 1, "memory_norm": False, "num_persistent_tokens": 0, "conv_size": 1},
    {"memory_depth": 3, "memory_gates_per_layer": False, "gate_type": "sigmoid", "tie_word_embeddings": False},
    {"memory_momentum": False, "memory_forgetting": False, "num_memory_heads": 4, "window_size": 40},
    {"memory_gate_keys": True, "memory_depth": 1},
    {"memory": {"head_dim": 12, "gate_keys": True, "num_heads": 3}},
]


def small(variant: str, **overrides) -> TitansConfig:
    fields = dict(
        vocab_size=31, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, chunk_size=4, segment_len=16,
        window_size=12, num_persistent_tokens=3, intermediate_size=48,
    )  # fmt: skip
    variant, _, conv = variant.partition("_")
    return TitansConfig(variant=variant, attention_conv_size=5 if conv else 1, **(fields | overrides))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_parameters_and_cache_bytes_are_exact(variant, options):
    config = small(variant, **options)
    model = TitansForCausalLM(config).eval()
    parameters = sum(p.numel() for p in model.parameters())
    assert cost(config).parameters == parameters
    assert parameters / 2 < least_parameters(config) <= parameters
    for tokens in (5, 30):
        with torch.no_grad():
            cache = model(torch.zeros(2, tokens, dtype=torch.int64)).past_key_values
        assert cache.nbytes() == cache_bytes(config, 2, tokens)
    if config.variant == "attention":
        config.window_size = None
        with torch.no_grad():
            cache = TitansForCausalLM(config).eval()(torch.zeros(1, 9, dtype=torch.int64)).past_key_values
        assert cache.nbytes() == cost(config, 9).cache_bytes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("tokens", [10, 16, 45])
def test_flops_are_what_a_counter_counts(variant, options, tokens, monkeypatch):
    """The counter does not see inside the operator of the memory's chunks; the next test counts those."""
    config = small(variant, **options)
    model = TitansForCausalLM(config).eval()
    monkeypatch.setattr(backends, "LAYER_TOKENS", 10**9)  # training pads the columns of a product to cache lines
    # the math backend, because the counter does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, tokens, dtype=torch.int64), use_cache=False)
    chunks = 0
    if config.variant != "attention":
        for rows, length in ((2, tokens), (1, config.num_persistent_tokens)):
            whole, rest = divmod(length, config.chunk_size)
            one_head = whole * chunk_flops(config, config.chunk_size) + chunk_flops(config, rest)
            chunks += rows * config.num_memory_heads * config.num_hidden_layers * one_head
    assert counter.get_total_flops() + chunks == forward_flops(config, 2, tokens)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_chunk_flops_are_those_of_the_parallel_form(depth):
    """Counts the products of the exact form (docs/exact_form.md), written out for one chunk."""
    config = small("lmm", memory_depth=depth, memory_expansion=2)
    size, width = config.chunk_size, config.memory_head_dim
    widths = MemoryNetwork(depth, 2).widths(width)
    weights, momentum = ([torch.randn(shape) for shape in widths] for _ in range(2))
    mix, k, q = torch.randn(size, size), torch.randn(size, width), torch.randn(size, width)
    with FlopCounterMode(display=False) as counter:
        inputs = [k]
        for weight in weights:
            inputs.append(inputs[-1] @ weight)
        gradients = [inputs.pop()]
        for weight in weights[:0:-1]:
            gradients.insert(0, gradients[0] @ weight.T)
        for a, d, weight, s in zip(inputs, gradients, weights, momentum, strict=True):
            q = q @ weight + q @ s - ((q @ a.T) * mix) @ d
            _ = weight - a.T @ d, s - a.T @ d
    assert counter.get_total_flops() == chunk_flops(config, size)


def test_depth_2_matches_the_published_count():
    config = small("lmm")
    size, width, hidden = 4, 16, 64
    assert chunk_flops(config, size) == 2 * (11 * size * width * hidden + 2 * size**2 * (width + hidden))


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 2.3), ("170m", 157.8), ("340m", 505.9), ("760m", 1105.7), ("1.3b", 1512.0)]
)
def test_preset_sizes_as_documented(name, millions):
    assert cost(TitansConfig.preset(name)).parameters / 1e6 == pytest.approx(millions, abs=0.06)
