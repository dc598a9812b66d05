"""A decode step on fixed buffers equals the model's step, and moves no data between host and device."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from titanslab import TitansCache, TitansConfig, TitansForCausalLM
from titanslab.models.decode_graph import DecodeGraph, StaticStep

VARIANTS = ("lmm", "mal", "mag", "mac")


def small(variant, **options):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "segment_len": 8, "window_size": 8}
    return TitansForCausalLM(TitansConfig.preset("tiny", variant, **(sizes | options))).eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_are_the_models_over_chunks_and_segments(variant, rows):
    model = small(variant)
    cache = model.read(torch.randint(0, 256, (rows, 21)))
    before = {name: t.clone() for name, t in cache.tensors().items()}
    step, other = StaticStep(model, cache), cache.fork()
    for token in torch.randint(0, 256, (40, rows)):
        with torch.no_grad():
            want = model(token[:, None], past_key_values=other, use_cache=True).logits[:, -1]
        torch.testing.assert_close(step(token), want)
    after = step.cache()
    assert after.columns == other.columns == 61
    for name, want in other.tensors().items():
        torch.testing.assert_close(after.tensors()[name], want, atol=1e-4, rtol=1e-4)
        assert torch.equal(cache.tensors()[name], before[name]), "the cache that was given has changed"
    ids = torch.randint(0, 256, (rows, 5))
    with torch.no_grad():
        torch.testing.assert_close(
            *(model(ids, past_key_values=c, use_cache=True).logits for c in (after, other)), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recorded_step_needs_nothing_from_the_host(variant, monkeypatch):
    """On the meta device reading a value raises. New constants from the host appear among the called functions."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # has no meta device
    model = small(variant)
    cache = model.read(torch.randint(0, 256, (2, 21))).map(lambda t: t.to("meta"))
    cache._writer, cache._fingerprint = None, ""
    model.to("meta")
    called = set()

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(str(func))
            return func(*args, **(kwargs or {}))

    token = torch.zeros(2, 1, dtype=torch.int64, device="meta")
    with torch.no_grad():
        model(token, past_key_values=cache.fork(), use_cache=True)  # the first call makes constants
        with Log():
            logits = model(token, past_key_values=cache, use_cache=True).logits
    assert logits.shape == (2, 1, model.config.vocab_size)
    assert called
    assert not [name for name in called if "lift_fresh" in name or "local_scalar" in name or "nonzero" in name]


def test_limits_made_while_inferring_serve_training():
    model = small("lmm")
    ids = torch.randint(0, 256, (1, 20))
    with torch.inference_mode():
        model(ids)
    model.train()(ids, labels=ids).loss.backward()
    assert model.model.layers[0].mixer.memory.theta_proj.weight.grad is not None


def test_what_cannot_be_recorded_is_refused():
    model = small("lmm")
    cache = model.read(torch.randint(0, 256, (1, 9)))
    with pytest.raises(ValueError, match=r"model is on cpu; a CUDA graph needs a GPU: use model\.to\('cuda'\)"):
        DecodeGraph(model, cache)
    with pytest.raises(ValueError, match="cache is empty: read a prompt first"):
        StaticStep(model, TitansCache(model.config))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        StaticStep(model.train(), cache)
    grows = small("attention", window_size=None)
    with pytest.raises(ValueError, match="its cache grows with every token"):
        StaticStep(grows, grows.read(torch.randint(0, 256, (1, 9))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_is_the_step(variant):
    model = small(variant).cuda()
    cache = model.read(torch.randint(0, 256, (2, 21), device="cuda"))
    graph, step = DecodeGraph(model, cache), StaticStep(model, cache)
    for token in torch.randint(0, 256, (40, 2), device="cuda"):
        torch.testing.assert_close(graph(token), step(token))
    for name, want in step.cache().tensors().items():
        torch.testing.assert_close(graph.cache().tensors()[name], want)
