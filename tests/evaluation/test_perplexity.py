"""Perplexity: each token is scored once, with the context of its window."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import byte_tokenizer
from titanslab.evaluation import perplexity as perplexity_module
from titanslab.evaluation.perplexity import evaluate_perplexity
from titanslab.evaluation.pictures import plot_positions
from titanslab.models.cache import CACHE

TEXTS = ["A first text of some length.", "Second: é.", ""]


class Counting(nn.Module):
    """Gives the byte 'x' the probability 1 / (2 + tokens read), so that its loss depends on the position."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=259)
        self.device = torch.device("cpu")
        self.lengths = []

    def forward(self, input_ids, use_cache=False, **cache):
        before = cache[CACHE] or 0
        count = torch.arange(1, input_ids.shape[1] + 1) + before
        chance = 1 / (2.0 + count)
        logits = torch.log((1 - chance) / 258)[:, None].repeat(1, 259)
        logits[:, ord("x")] = torch.log(chance)
        self.lengths.append(input_ids.shape[1])
        after = before + input_ids.shape[1] if use_cache else None
        return SimpleNamespace(logits=logits.expand(len(input_ids), -1, -1), **{CACHE: after})


def expected(count, length):
    return [math.log(2 + 1 + position % length) for position in range(count)]


@pytest.mark.parametrize(("length", "piece"), [(4, 2048), (7, 2048), (100, 2048), (7, 3), (100, 8)])
def test_losses_by_position_against_a_plain_loop(length, piece, monkeypatch):
    monkeypatch.setattr(perplexity_module, "LONGEST_PIECE", piece)
    texts = ["x" * 30, "x" * 13]
    seen = []
    result = evaluate_perplexity(
        Counting(),
        byte_tokenizer(),
        texts,
        context_length=length,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    losses = expected(30, length) + expected(13, length)
    assert (result.tokens, result.bytes, result.documents) == (43, 43, 2)
    assert result.loss == pytest.approx(sum(losses) / 43)
    assert result.bits_per_byte == pytest.approx(sum(losses) / 43 / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    for bucket in result.positions:
        inside = [loss for loss in losses if bucket.first <= round(math.exp(loss)) - 2 <= bucket.last]
        assert bucket.tokens == len(inside)
        assert bucket.loss == pytest.approx(sum(inside) / len(inside))
    assert sum(bucket.tokens for bucket in result.positions) == 43
    assert seen[-1] == (43, 43)


def test_bytes_count_utf8_and_a_limit_cuts_text_and_bytes_alike():
    result = evaluate_perplexity(Counting(), byte_tokenizer(), ["é" * 10, "abc"], context_length=64)
    assert (result.tokens, result.bytes) == (23, 23)
    cut = evaluate_perplexity(Counting(), byte_tokenizer(), ["x" * 10, "abc"], context_length=64, max_tokens=4)
    assert (cut.tokens, cut.bytes, cut.documents) == (4, 4, 1)


def test_whole_windows_alone_score_the_same_documents_at_every_position():
    texts = ["x" * 30, "x" * 13, "xyz"]
    result = evaluate_perplexity(Counting(), byte_tokenizer(), texts, context_length=8, whole_windows=True)
    assert (result.tokens, result.bytes, result.documents) == (24 + 8, 24 + 8, 2)
    assert {bucket.tokens / (bucket.last - bucket.first + 1) for bucket in result.positions} == {4.0}
    cut = evaluate_perplexity(Counting(), byte_tokenizer(), texts, context_length=8, whole_windows=True, max_tokens=20)
    assert (cut.tokens, cut.documents) == (16, 1)
    with pytest.raises(ValueError, match="no text has 64 tokens to predict"):
        evaluate_perplexity(Counting(), byte_tokenizer(), texts, context_length=64, whole_windows=True)


@pytest.fixture(scope="module")
def titans():
    torch.manual_seed(0)
    config = TitansConfig.preset(
        "tiny", vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, segment_len=8
    )
    return TitansForCausalLM(config).eval()


def test_batches_and_pieces_change_nothing(titans, monkeypatch):
    texts = [text * 3 for text in TEXTS]
    whole = evaluate_perplexity(titans, byte_tokenizer(), texts, context_length=64, batch_size=1)
    batched = evaluate_perplexity(titans, byte_tokenizer(), texts, context_length=64, batch_size=8)
    monkeypatch.setattr(perplexity_module, "LONGEST_PIECE", 5)
    pieces = evaluate_perplexity(titans, byte_tokenizer(), texts, context_length=64, batch_size=8)
    assert batched.loss == pytest.approx(whole.loss, rel=1e-5)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-5)
    assert whole.documents == 2


def test_any_causal_model_and_its_own_limit():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=259,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    result = evaluate_perplexity(model, byte_tokenizer(), TEXTS, context_length=32)
    assert result.tokens == sum(len(text.encode()) for text in TEXTS)
    assert result.loss == pytest.approx(math.log(259), rel=0.02)
    with pytest.raises(ValueError, match="context_length is 64, but this model reads at most 32"):
        evaluate_perplexity(model, byte_tokenizer(), TEXTS, context_length=64)


def test_nothing_to_score_raises(titans):
    with pytest.raises(ValueError, match="holds no token to predict"):
        evaluate_perplexity(titans, byte_tokenizer(), [""], context_length=8)
    with pytest.raises(ValueError, match="must be 1 or more, got 0"):
        evaluate_perplexity(titans, byte_tokenizer(), TEXTS, context_length=0)


def test_picture_is_a_whole_png(tmp_path):
    results = {
        f"context {length}": evaluate_perplexity(Counting(), byte_tokenizer(), ["x" * 100], context_length=length)
        for length in (10, 50)
    }
    plot_positions(results, tmp_path / "a.png", "title")
    plot_positions(results, tmp_path / "a.png", "title", by_byte=True)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.rstrip().endswith(b"IEND\xaeB`\x82")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
