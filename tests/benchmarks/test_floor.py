"""Compares FLOPs by formula with the products written out, and with torch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floor


@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_depth_two_is_the_closed_form_of_the_exact_chunk(chunk):
    tokens, heads, width, hidden = 4 * chunk, 3, 8, 32
    per_chunk = 11 * chunk * width * hidden + 2 * chunk**2 * (width + hidden)
    assert floor.memory_flops(tokens, chunk, heads, width, 2, 4) == 2 * 4 * heads * per_chunk


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_memory_flops_are_those_of_a_plain_chunk(depth):
    chunk, width, expansion = 5, 6, 3
    shapes = floor.widths(width, depth, expansion)
    weights = [torch.randn(s) for s in shapes]
    with FlopCounterMode(display=False) as counter:
        inputs, gradient = [torch.randn(chunk, width)], torch.randn(chunk, width)
        for w in weights:
            inputs.append(inputs[-1] @ w)
        slopes = [gradient]
        for w in reversed(weights[1:]):
            slopes.insert(0, slopes[0] @ w.T)
        for a, d in zip(inputs[:-1], slopes, strict=True):
            _ = a.T @ d, a.T @ d  # weights and momentum at the chunk's end
        read = torch.randn(chunk, width)
        for w, a, d in zip(weights, inputs[:-1], slopes, strict=True):
            read = read @ w + read @ torch.zeros_like(w) - (read @ a.T) @ d
    assert floor.memory_flops(chunk, chunk, 1, width, depth, expansion) == counter.get_total_flops()


def test_a_last_short_chunk_counts_by_its_own_length():
    whole = floor.memory_flops(32, 16, 2, 8, 2, 4)
    assert floor.memory_flops(35, 16, 2, 8, 2, 4) == whole + floor.memory_flops(3, 3, 2, 8, 2, 4)


@pytest.mark.parametrize("window", [None, 4, 100])
def test_attention_counts_the_pairs_that_are_seen(window):
    tokens, dim = 9, 8
    seen = [min(t + 1, window or tokens) for t in range(tokens)]
    scores = 2 * sum(seen) * dim
    assert floor.attention_flops(tokens, dim, window) == 2 * (4 * tokens * dim**2 + scores)


def test_batch_multiplies():
    for count in (
        lambda b: floor.memory_flops(40, 16, 2, 8, 3, 4, b),
        lambda b: floor.memory_bytes(40, 2, 8, 3, b),
        lambda b: floor.state_traffic(40, 16, 2, 8, 3, 4, b),
        lambda b: floor.projection_flops(40, 16, 16, 6, b),
        lambda b: floor.attention_flops(40, 16, 8, b),
    ):
        assert count(6) == 6 * count(1)


def test_fraction_takes_the_slower_of_products_and_copies():
    by_products = floor.fraction(1000, 10, seconds=4.0, flop_rate=500.0, byte_rate=100.0)
    assert by_products["bound"] == "compute"
    assert by_products["fraction_reached"] == pytest.approx(0.5)
    by_copies = floor.fraction(1000, 900, seconds=18.0, flop_rate=500.0, byte_rate=100.0)
    assert by_copies["bound"] == "transfer"
    assert by_copies["fraction_reached"] == pytest.approx(0.5)
