"""Models in float16 and bfloat16: made, loaded, saved, read in pieces, trained; and caches cast to them."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from titanslab import TitansCache, TitansConfig, TitansForCausalLM

IDS = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(1))
VARIANTS = ("lmm", "mal", "mag", "mac", "attention")


def config(variant, **options):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"chunk_size": 4, "segment_len": 8, "num_persistent_tokens": 2, "window_size": 8}
    return TitansConfig(variant=variant, **{**sizes, **more, **options})


def check(half, want, dtype):
    """Logits near those of float32, the same in pieces, and gradients that are finite."""
    with torch.no_grad():
        whole = half.eval()(IDS).logits
        rest = half(IDS[:, 13:], past_key_values=half.read(IDS[:, :13])).logits
        assert half.generate(IDS[:, :9], max_new_tokens=3, do_sample=False).shape == (2, 12)
    assert whole.dtype == dtype
    if want is not None:
        assert (whole.float() - want).abs().max() < 0.1
    torch.testing.assert_close(rest, whole[:, 13:], rtol=0.05, atol=0.05)
    half.train()(IDS, labels=IDS).loss.backward()
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_models_are_made_loaded_and_saved_in_half_precision(variant, dtype, tmp_path):
    torch.manual_seed(0)
    network = TitansForCausalLM(config(variant)).eval()
    with torch.no_grad():
        want = network(IDS).logits
    network.save_pretrained(tmp_path / "wide")
    check(AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=dtype), want, dtype)
    network.to(dtype).save_pretrained(tmp_path / "half")
    check(AutoModelForCausalLM.from_pretrained(tmp_path / "half"), want, dtype)
    check(network, want, dtype)
    check(AutoModelForCausalLM.from_config(config(variant), dtype=dtype), None, dtype)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_a_cache_in_half_precision_keeps_its_positions(variant, tmp_path):
    torch.manual_seed(0)
    network = TitansForCausalLM(config(variant)).eval()
    ids = torch.randint(0, 64, (1, 2051))
    cache = network.read(ids)
    half = cache.to(torch.float16)
    assert half.position.tolist() == [2051]
    assert half.position.dtype == torch.int64
    half.save(tmp_path / "half.cache", network)
    loaded = TitansCache.load(tmp_path / "half.cache", network)
    near = network(IDS[:1], past_key_values=loaded).logits
    assert (near - network(IDS[:1], past_key_values=cache).logits).abs().max() < 0.1
