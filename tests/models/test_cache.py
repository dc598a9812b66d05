"""Tests of `TitansCache`: errors, saving, and rows of a batch."""

import copy
import gc
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache

from titanslab import TitansCache, TitansConfig, TitansForCausalLM


def small(variant: str = "mac", **overrides) -> TitansConfig:
    fields = dict(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, memory_expansion=2, chunk_size=4,
        segment_len=8, window_size=6, num_persistent_tokens=3, intermediate_size=32,
    )  # fmt: skip
    return TitansConfig(variant=variant, **(fields | overrides))


@pytest.fixture
def model() -> TitansForCausalLM:
    torch.manual_seed(0)
    return TitansForCausalLM(small()).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 31, (2, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_save_is_whole_or_not_at_all(model, ids, tmp_path, monkeypatch):
    path = tmp_path / "cache.safetensors"
    cache = model(ids).past_key_values
    cache.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        cache.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cache.safetensors"]


@torch.no_grad()
def test_load_gives_back_every_tensor(model, ids, tmp_path):
    cache = model(ids, document_ids=torch.ones_like(ids)).past_key_values
    cache.save(tmp_path / "c")
    loaded = TitansCache.load(tmp_path / "c", model.config)
    assert loaded.columns == cache.columns
    mine, theirs = cache.tensors(), loaded.tensors()
    assert mine.keys() == theirs.keys()
    assert "document" in mine
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@torch.no_grad()
def test_load_refuses_what_is_not_a_cache(model, ids, tmp_path):
    path = tmp_path / "c"
    with pytest.raises(FileNotFoundError, match="no cache file"):
        TitansCache.load(path, model)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a readable cache file"):
        TitansCache.load(path, model)
    model(ids).past_key_values.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable cache file"):
        TitansCache.load(path, model)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a cache written by TitansCache"):
        TitansCache.load(path, model)
    save_file({"a": torch.zeros(1)}, path, metadata={"format": "titans-cache", "version": "99"})
    with pytest.raises(ValueError, match="format version '99'"):
        TitansCache.load(path, model)


@torch.no_grad()
def test_load_refuses_another_model(model, ids, tmp_path):
    path = tmp_path / "c"
    model(ids).past_key_values.save(path, model)
    with pytest.raises(ValueError, match="another model: variant 'mac' there and 'mag' here"):
        TitansCache.load(path, small("mag"))
    with pytest.raises(ValueError, match="chunk_size 4 there and 8 here"):
        TitansCache.load(path, small(chunk_size=8))
    with pytest.raises(ValueError, match="memory_gate_keys False there and True here"):
        TitansCache.load(path, small(memory_gate_keys=True))
    TitansCache.load(path, small(fused_loss=True))
    other = TitansForCausalLM(small())
    with pytest.raises(ValueError, match="same shape with other weights"):
        TitansCache.load(path, other)
    other.load_state_dict(model.state_dict())
    TitansCache.load(path, other)


@torch.no_grad()
def test_a_cache_file_of_before_a_field_was_there_is_read(model, ids, tmp_path):
    model(ids).past_key_values.save(tmp_path / "c")
    with safe_open(tmp_path / "c", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    del config["attention_conv_size"], config["memory_head_dim"], metadata["checksum"]
    save_file(tensors, tmp_path / "old", metadata | {"config": json.dumps(config)})
    with pytest.warns(match="old carries no checksum: an earlier release wrote it"):
        loaded = TitansCache.load(tmp_path / "old", model)
    assert all(torch.equal(t, tensors[name]) for name, t in loaded.tensors().items())
    with pytest.warns(match="no checksum"):
        unbound = TitansCache.load(tmp_path / "old")
    assert model(ids, past_key_values=unbound).logits.isfinite().all()


@torch.no_grad()
def test_a_model_of_other_weights_is_refused_in_memory_too(model, ids):
    cache = model(ids).past_key_values
    other = TitansForCausalLM(small()).eval()
    with pytest.raises(ValueError, match="same shape with other weights"):
        other(ids, past_key_values=cache.fork())
    other.load_state_dict(model.state_dict())
    other(ids, past_key_values=cache.fork())


@torch.no_grad()
def test_a_cache_whose_model_is_gone_says_so_when_it_is_saved(ids, tmp_path):
    torch.manual_seed(0)
    model = TitansForCausalLM(small()).eval()
    cache, weights = model(ids).past_key_values, model.state_dict()
    del model
    gc.collect()
    with pytest.raises(ValueError, match="model that filled the cache is gone"):
        cache.save(tmp_path / "c")
    assert not list(tmp_path.iterdir())
    model = TitansForCausalLM(small()).eval()
    model.load_state_dict(weights)
    cache.save(tmp_path / "c", model)
    assert TitansCache.load(tmp_path / "c", model).columns == cache.columns


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "attention"])
@torch.no_grad()
def test_the_same_model_in_another_precision_goes_on(variant, ids, tmp_path):
    torch.manual_seed(0)
    model = TitansForCausalLM(small(variant)).eval()
    cache = model(ids).past_key_values
    cache.save(tmp_path / "c", model)
    expected = model(ids, past_key_values=cache.fork()).logits
    low = copy.deepcopy(model).bfloat16()
    for given in (cache.fork(), TitansCache.load(tmp_path / "c", low)):
        for part in ids.split(1, dim=1)[:2], ids.split(8, dim=1)[1:]:  # one token, and several
            out = low(torch.cat(part, dim=1), past_key_values=given.fork()).logits
            assert out.dtype == torch.bfloat16
        torch.testing.assert_close(low(ids, past_key_values=given).logits.float(), expected, atol=0.1, rtol=0.1)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(double(ids, past_key_values=cache).logits.float(), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_copy_is_a_fork_and_a_link_is_followed(model, ids, tmp_path):
    cache = model(ids).past_key_values
    before = cache.tensors()
    model(ids, past_key_values=copy.copy(cache))
    assert all(torch.equal(t, before[name]) for name, t in cache.tensors().items())
    (tmp_path / "link").symlink_to(tmp_path / "file")
    cache.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert TitansCache.load(tmp_path / "file", model).columns == cache.columns
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        cache.save(tmp_path / "pipe")


def test_an_empty_cache_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        TitansCache(small()).save(tmp_path / "c")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_model_refuses_foreign_caches(model, ids):
    with pytest.raises(ValueError, match="must be a TitansCache, got DynamicCache"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="cache of another model: variant 'lmm' there and 'mac' here"):
        model(ids, past_key_values=TitansCache(small("lmm")))
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="holds 2 rows, the input has 1"):
        model(ids[:1], past_key_values=cache)


@torch.no_grad()
def test_rows_are_selected_and_repeated(model, ids):
    later = ids[:, :4]
    expected = model(torch.cat((ids, later), dim=1)).logits[:, 11:]
    cache = model(ids).past_key_values
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    out = model(later.repeat_interleave(2, dim=0), past_key_values=cache).logits
    torch.testing.assert_close(out[::2], expected, atol=1e-4, rtol=0)
    cache = model(ids).past_key_values
    cache.batch_select_indices(torch.tensor([1]))
    torch.testing.assert_close(model(later[1:], past_key_values=cache).logits, expected[1:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_reset_forgets(model, ids):
    first = model(ids).logits
    cache = TitansCache(model.config)
    model(ids.flip(1), past_key_values=cache)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, cache.nbytes()) == (0, -1, 0)
    assert torch.equal(model(ids, past_key_values=cache).logits, first)


def test_crop_says_why_not(model, ids):
    with pytest.raises(NotImplementedError, match="cannot unlearn"):
        model(ids).past_key_values.crop(-1)
    with pytest.raises(NotImplementedError, match="key by key"):
        TitansCache(model.config).update(None, None, 0)


def test_gradients_flow_through_a_cache_until_detached(ids):
    model = TitansForCausalLM(small("lmm")).double()
    cache = TitansCache(model.config)
    model(ids, past_key_values=cache)
    early = model.model.embed_tokens.weight
    loss = model(ids[:, :1], past_key_values=cache.fork()).logits.square().sum()
    whole = torch.autograd.grad(loss, early, retain_graph=True)[0]
    loss = model(ids[:, :1], past_key_values=cache.detach()).logits.square().sum()
    cut = torch.autograd.grad(loss, early)[0]
    assert (whole - cut).abs().max() > 1e-9


@torch.no_grad()
def test_full_attention_grows_and_says_so():
    model = TitansForCausalLM(small("attention", window_size=None)).eval()
    ids = torch.zeros(1, 10, dtype=torch.int64)
    cache = model(ids).past_key_values
    before = cache.nbytes()
    model(ids, past_key_values=cache)
    assert cache.nbytes() == before + 2 * 2 * 10 * 16 * 4


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "attention"])
@torch.no_grad()
def test_a_cache_does_not_keep_a_long_prompt_alive(variant):
    """A slice would keep the whole long tensor in memory."""
    model = TitansForCausalLM(small(variant, num_persistent_tokens=0)).eval()
    cache = model(torch.zeros(1, 2000, dtype=torch.int64)).past_key_values
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.tensors().values()}
    assert sum(held.values()) < 3 * cache.nbytes()


@torch.no_grad()
def test_both_names_of_the_cache(model, ids):
    """transformers 5.24 renamed `past_key_values` to `cache`. Both names work with any release."""
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    before, later = TitansCache(model.config), ids.flip(1)
    model(ids, cache=before)
    longer = torch.cat((ids, later), dim=1)
    answers, logits = [], []
    for name in ("past_key_values", "cache"):
        answers.append(model.generate(longer, **{name: before.fork()}, **options))
        logits.append(model(later, **{name: before.fork()}).logits)
    assert torch.equal(*answers)
    assert torch.equal(answers[0], model.generate(longer, **options))
    assert torch.equal(*logits)
    with pytest.raises(ValueError, match="two different caches"):
        model(later, past_key_values=before.fork(), cache=before.fork())
    with pytest.raises(ValueError, match="two different caches"):
        model.generate(longer, past_key_values=before.fork(), cache=before.fork())
