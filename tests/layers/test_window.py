"""Compares windowed attention with a dense mask."""

import pytest
import torch
import torch.nn.functional as F

from titanslab.layers import window as window_module
from titanslab.layers.window import attend


def tensors(length: int, past: int = 0, prefix: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, 3, length, 8)] * 3 + [(2, 3, past, 8)] * 2 + [(1, 3, prefix, 8)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def dense(q, k, v, pk, pv, prefix_k, prefix_v, window, count, documents) -> torch.Tensor:
    """The definition, with one dense mask over prefix, past and tokens."""
    batch, _, length, _ = q.shape
    past = pk.shape[2]
    keys = torch.cat((prefix_k.expand(batch, -1, -1, -1), pk, k), dim=2)
    values = torch.cat((prefix_v.expand(batch, -1, -1, -1), pv, v), dim=2)
    mask = torch.zeros(batch, length, keys.shape[2], dtype=torch.bool)
    mask[:, :, : prefix_k.shape[2]] = True
    for row in range(batch):
        for i in range(length):
            for j in range(-past, i + 1):
                near = window is None or i - j < window
                real = j >= 0 or -j <= count[row]
                same = documents[row, i] == (documents[row, j] if j >= 0 else 0)
                mask[row, i, prefix_k.shape[2] + past + j] = near and real and same
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, None])


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("window", [None, 1, 4, 7, 40])
@pytest.mark.parametrize("length", [1, 2, 4, 7, 8, 23])
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("with_past", [False, True])
def test_equals_a_dense_mask(prefix, window, length, with_documents, with_past):
    slots = 0 if not with_past else 9 if window is None else window - 1
    q, k, v, pk, pv, prefix_k, prefix_v = tensors(length, slots, prefix)
    count = torch.tensor([2, 9]).clamp(max=slots)
    documents = torch.zeros(2, length, dtype=torch.int64)
    if with_documents:
        documents[0] = torch.arange(length) // 3
        documents[1] = (torch.arange(length) + 5) // 6
    out = attend(
        q,
        k,
        v,
        prefix=(prefix_k, prefix_v) if prefix else None,
        window=window,
        past=(pk, pv) if with_past else None,
        past_count=count if with_past else None,
        documents=documents if with_documents else None,
    )
    expected = dense(q, k, v, pk, pv, prefix_k, prefix_v, window, count, documents)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [None, 5])
def test_blocks_of_bounded_masks_change_nothing(window, monkeypatch):
    q, k, v, *_ = tensors(23)
    documents = (torch.arange(23) // 6).expand(2, -1)
    whole = attend(q, k, v, window=window, documents=documents)
    monkeypatch.setattr(window_module, "QUERY_BLOCK", 4)
    monkeypatch.setattr(window_module, "MASK_ELEMENTS", 100)
    parts = attend(q, k, v, window=window, documents=documents)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


def test_past_needs_its_count():
    q, k, v, pk, pv, *_ = tensors(3, past=4)
    with pytest.raises(ValueError, match="past_count"):
        attend(q, k, v, window=5, past=(pk, pv))


def test_long_windows_hold_no_square_mask():
    """With 32,768 tokens a dense mask alone would take a gigabyte."""
    import resource

    q = torch.zeros(1, 1, 32768, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    documents = (torch.arange(32768) // 5000)[None]
    attend(q, q, q, window=64)
    attend(q, q, q, window=64, documents=documents)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
