"""A split input, decoding, and a saved and loaded cache give the outputs of one call, for every variant."""

import pytest
import torch

from titanslab import TitansCache, TitansConfig, TitansForCausalLM
from tolerances import EXACT

VARIANTS = ["lmm", "mal", "mag", "mac", "attention", "full", "attention_conv", "full_conv"]


def make_model(variant: str, **overrides) -> TitansForCausalLM:
    torch.manual_seed(0)
    fields = dict(
        vocab_size=31, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, num_memory_heads=3,
        memory_expansion=2, chunk_size=4, segment_len=8, window_size=6, num_persistent_tokens=3,
        intermediate_size=32, initializer_range=0.3,
    )  # fmt: skip
    variant, _, conv = variant.partition("_")
    if conv:
        fields["attention_conv_size"] = 4
    if variant == "full":
        variant, fields["window_size"] = "attention", None
    model = TitansForCausalLM(TitansConfig(variant=variant, **(fields | overrides)))
    return model.double().eval()


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 31, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(model, ids: torch.Tensor, cuts: list[int], **kwargs) -> tuple[torch.Tensor, TitansCache]:
    cache, logits = TitansCache(model.config), []
    for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        rows = {name: t[:, start:stop] for name, t in kwargs.items()}
        logits.append(model(ids[:, start:stop], past_key_values=cache, **rows).logits)
    return torch.cat(logits, dim=1), cache


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_one_cut_anywhere(variant):
    model, ids = make_model(variant), tokens(2, 21)
    whole = model(ids).logits
    for cut in range(1, 21):
        pieces, _ = in_pieces(model, ids, [cut])
        torch.testing.assert_close(pieces, whole, atol=EXACT, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cuts", [[1, 2, 3, 19], [5, 6, 30], [8, 16, 24], [7, 9, 17]])
@torch.no_grad()
def test_several_tokens_onto_a_filled_cache(variant, cuts):
    model, ids = make_model(variant), tokens(3, 37)
    pieces, cache = in_pieces(model, ids, cuts)
    torch.testing.assert_close(pieces, model(ids).logits, atol=EXACT, rtol=0)
    assert cache.get_seq_length() == 37


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "overrides", [{}, {"num_persistent_tokens": 0, "conv_size": 1, "window_size": 1, "segment_len": 1}]
)
@torch.no_grad()
def test_decode_is_prefill(variant, overrides):
    if variant.startswith("full"):
        overrides = {k: v for k, v in overrides.items() if k != "window_size"}
    model, ids = make_model(variant, **overrides), tokens(2, 19)
    pieces, _ = in_pieces(model, ids, list(range(1, 19)))
    torch.testing.assert_close(pieces, model(ids).logits, atol=EXACT, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_cuts_inside_documents(variant):
    model, ids = make_model(variant), tokens(2, 30)
    documents = torch.stack((torch.arange(30) // 11, torch.arange(30) // 4))
    whole = model(ids, document_ids=documents).logits
    for cuts in ([10], [11], [12, 13], [4, 5, 6, 7, 8, 22], [16, 24]):
        pieces, _ = in_pieces(model, ids, cuts, document_ids=documents)
        torch.testing.assert_close(pieces, whole, atol=EXACT, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_saved_and_loaded_in_between(variant, tmp_path):
    model, ids = make_model(variant), tokens(2, 25)
    whole = model(ids).logits
    for cut in (3, 13):
        _, cache = in_pieces(model, ids[:, :cut], [])
        cache.save(tmp_path / "cache.safetensors", model)
        loaded = TitansCache.load(tmp_path / "cache.safetensors", model)
        rest = model(ids[:, cut:], past_key_values=loaded).logits
        torch.testing.assert_close(rest, whole[:, cut:], atol=EXACT, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_fork_leaves_its_origin_alone(variant):
    model, ids = make_model(variant), tokens(1, 20)
    _, cache = in_pieces(model, ids[:, :9], [])
    fork = cache.fork()
    model(tokens(1, 5, seed=1), past_key_values=fork)
    rest = model(ids[:, 9:], past_key_values=cache).logits
    torch.testing.assert_close(rest, model(ids).logits[:, 9:], atol=EXACT, rtol=0)
    assert fork.get_seq_length() == 14


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "attention", "attention_conv"])
@torch.no_grad()
def test_bytes_do_not_grow(variant):
    model, sizes = make_model(variant), []
    cache = TitansCache(model.config)
    for step, length in enumerate([1, 3, 20, 50, 1]):
        model(tokens(2, length, seed=step), past_key_values=cache)
        sizes.append(cache.nbytes())
    assert len(set(sizes)) == 1
    assert sizes[0] > 0
