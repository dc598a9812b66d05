"""Rows, padding and documents: each row gives the outputs that it gives alone, for every variant."""

import itertools

import pytest
import torch

from titanslab import TitansCache, TitansConfig, TitansForCausalLM
from tolerances import EXACT

VARIANTS = ["lmm", "mal", "mag", "mac", "attention", "full", "full_conv"]


@pytest.fixture(params=VARIANTS)
def model(request) -> TitansForCausalLM:
    torch.manual_seed(0)
    variant, _, conv = request.param.partition("_")
    full = variant == "full"
    config = TitansConfig(
        variant="attention" if full else variant, vocab_size=31, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, memory_expansion=2, chunk_size=4, segment_len=8, window_size=None if full else 6,
        num_persistent_tokens=3, intermediate_size=32, initializer_range=0.3, attention_conv_size=4 if conv else 1,
    )  # fmt: skip
    return TitansForCausalLM(config).double().eval()


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 31, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_rows_are_independent(model):
    ids = tokens(3, 22)
    whole = model(ids).logits
    for row in range(3):
        torch.testing.assert_close(model(ids[row : row + 1]).logits, whole[row : row + 1], atol=EXACT, rtol=0)


@pytest.mark.parametrize("where", ["left", "right", "inside"])
@torch.no_grad()
def test_padding_is_as_if_it_were_not_there(model, where):
    lengths, width = (21, 9, 1, 14), 21
    ids = tokens(4, width)
    mask = torch.zeros(4, width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        if where == "inside":
            mask[row, torch.randperm(width, generator=torch.Generator().manual_seed(row))[:length]] = 1
        else:
            mask[row, slice(width - length, None) if where == "left" else slice(length)] = 1
    out = model(ids, attention_mask=mask).logits
    for row in range(4):
        real = mask[row].bool()
        alone = model(ids[row, real][None]).logits[0]
        torch.testing.assert_close(out[row, real], alone, atol=EXACT, rtol=0)
        assert (out[row, ~real] == 0).all()


@torch.no_grad()
def test_padding_at_batch_1(model):
    ids = tokens(1, 17)
    mask = torch.ones(1, 17)
    mask[:, :5] = 0
    out = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(out[:, 5:], model(ids[:, 5:]).logits, atol=EXACT, rtol=0)


@torch.no_grad()
def test_padding_then_decoding(model):
    """Left padding in the prefill, padded later calls, and a row without tokens in one call."""
    ids = tokens(3, 30)
    mask = torch.ones(3, 30, dtype=torch.int64)
    mask[0, :7] = mask[1, 12:16] = mask[2, 10:20] = mask[1, 21] = 0
    cache, logits = TitansCache(model.config), []
    for start, stop in ((0, 10), (10, 20), (20, 21), (21, 22), (22, 30)):
        piece = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
        logits.append(piece.logits)
    out = torch.cat(logits, dim=1)
    for row in range(3):
        real = mask[row].bool()
        alone = model(ids[row, real][None]).logits[0]
        torch.testing.assert_close(out[row, real], alone, atol=EXACT, rtol=0)


@torch.no_grad()
def test_documents_are_separate_runs(model):
    ids = tokens(2, 31)
    documents = torch.stack((torch.arange(31) // 9, torch.tensor([5] * 3 + [2] * 17 + [5] * 11)))
    out = model(ids, document_ids=documents).logits
    for row, cuts in enumerate(([0, 9, 18, 27, 31], [0, 3, 20, 31])):
        for start, stop in itertools.pairwise(cuts):
            alone = model(ids[row : row + 1, start:stop]).logits
            torch.testing.assert_close(out[row : row + 1, start:stop], alone, atol=EXACT, rtol=0)


@torch.no_grad()
def test_documents_and_padding_together(model):
    ids = tokens(2, 24)
    documents = torch.stack((torch.arange(24) // 8, torch.arange(24) // 13))
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[0, :10] = mask[0, 17] = mask[1, 12:15] = 0
    out = model(ids, attention_mask=mask, document_ids=documents).logits
    for row in range(2):
        for document in documents[row].unique():
            real = (documents[row] == document) & mask[row].bool()
            if real.any():
                alone = model(ids[row, real][None]).logits[0]
                torch.testing.assert_close(out[row, real], alone, atol=EXACT, rtol=0)


@torch.no_grad()
def test_a_new_id_in_a_later_call_starts_a_document(model):
    ids = tokens(2, 12)
    cache = TitansCache(model.config)
    model(ids, document_ids=torch.zeros(2, 12, dtype=torch.int64), past_key_values=cache)
    later = tokens(2, 6, seed=3)
    ids_now = torch.tensor([[0] * 6, [7] * 6])
    out = model(later, document_ids=ids_now, past_key_values=cache).logits
    torch.testing.assert_close(out[1:], model(later[1:]).logits, atol=EXACT, rtol=0)
    joined = model(torch.cat((ids, later), dim=1)).logits
    torch.testing.assert_close(out[:1], joined[:1, 12:], atol=EXACT, rtol=0)


@torch.no_grad()
def test_rows_of_a_cache_can_be_reordered(model):
    ids, later = tokens(3, 13), tokens(4, 5, seed=2)
    cache = model(ids, use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([2, 0, 0, 1]))
    out = model(later, past_key_values=cache).logits
    expected = model(torch.cat((ids[[2, 0, 0, 1]], later), dim=1)).logits[:, 13:]
    torch.testing.assert_close(out, expected, atol=EXACT, rtol=0)


@torch.no_grad()
def test_repeat_is_bitwise_equal(model):
    ids = tokens(2, 19)
    assert torch.equal(model(ids).logits, model(ids).logits)
