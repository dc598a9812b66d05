"""One cache for keys, values and memories: generation in all its forms, forks, batches, files."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from grafted import VOCABULARY, base, grafted, left_padded, text
from titanslab import GraftCache

GREEDY = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
CASES = [
    ("llama", {}),
    ("gemma3", {"window_size": 6, "num_sink_tokens": 2}),
    ("llama", {"placement": "mac", "window_size": 6}),
    ("lfm2", {"window_size": 6, "num_sink_tokens": 2}),
    ("qwen3_next", {"window_size": 6}),
    ("qwen3_next", {}),
]


@torch.no_grad()
def greedy(model, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The tokens that a model without a cache adds one at a time."""
    for _ in range(count):
        new = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, new), 1)
    return ids


def read(model, ids, cache, mask=None, **given):
    """The logits of a call with a cache."""
    with torch.no_grad():
        return model(ids, attention_mask=mask, **{model.graft.decoder.cache_name: cache}, **given).logits


def prompt(model, cache) -> dict:
    """The arguments of `generate()` for a prompt of new tokens after a cache."""
    return {model.graft.decoder.cache_name: cache}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_greedy_is_that_of_a_model_without_a_cache(name, options):
    model = grafted(base(name), **options)
    ids = text(2, 9)
    assert torch.equal(model.generate(ids, **GREEDY), greedy(model, ids, 9))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_rows_of_a_padded_batch_are_those_alone(name, options):
    model = grafted(base(name), **options)
    ids, mask = left_padded(2, 14)
    both = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(both[:1, 5:], model.generate(ids[:1, 5:], **GREEDY))
    assert torch.equal(both[1:], model.generate(ids[1:], **GREEDY))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_beams(name, options):
    """Beam search reorders rows; its scores are those of the texts, read again without a cache."""
    model = grafted(base(name), **options)
    ids = text(2, 9)
    wanted = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    found = model.generate(ids, length_penalty=0.0, **wanted, **GREEDY)
    with torch.no_grad():
        chances = model(found.sequences, use_cache=False).logits.log_softmax(-1)
    sums = chances[:, 8:-1].gather(2, found.sequences[:, 9:, None]).sum((1, 2))
    torch.testing.assert_close(sums, found.sequences_scores, atol=1e-4, rtol=1e-4)


def test_samples():
    model = grafted(base())
    torch.manual_seed(0)
    rows = model.generate(text(1, 9), do_sample=True, num_return_sequences=4, max_new_tokens=8, pad_token_id=0)
    assert rows.shape == (4, 17)
    assert len({tuple(row.tolist()) for row in rows}) == 4


@pytest.mark.parametrize(("name", "options"), CASES)
def test_prompts_of_new_tokens_go_on(name, options):
    model = grafted(base(name), **options)
    ids, more = text(2, 20), text(2, 4, seed=5)
    cache = model.graft.cache()
    read(model, ids[:, :11], cache)
    read(model, ids[:, 11:], cache)
    wanted = model.generate(torch.cat((ids, more), 1), **GREEDY)[:, 20:]
    assert torch.equal(model.generate(more, **prompt(model, cache.continued()), **GREEDY), wanted)
    assert torch.equal(
        model.generate(torch.cat((ids, more), 1), **prompt(model, cache.fork()), **GREEDY)[:, 20:], wanted
    )
    assert cache.columns == 20
    mask = torch.ones(2, 4, dtype=torch.int64)
    found = model.generate(more, attention_mask=mask, **prompt(model, cache.continued()), **GREEDY)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_padded_prompts_after_a_cache(name, options):
    model = grafted(base(name), **options)
    first, mask = left_padded(2, 14)
    more, second = text(2, 6, seed=5), torch.ones(2, 6, dtype=torch.int64)
    more[1, :3] = second[1, :3] = 0
    cache = model.graft.cache()
    read(model, first, cache, mask, position_ids=(mask.cumsum(1) - 1).clamp(0))
    found = model.generate(more, attention_mask=second, **prompt(model, cache.continued()), **GREEDY)
    for row, (a, b) in enumerate(((5, 0), (0, 3))):
        alone = model.generate(torch.cat((first[row, a:], more[row, b:]))[None], **GREEDY)
        assert torch.equal(found[row, 6:], alone[0, -9:])


def test_batches_of_a_cache():
    model = grafted(base(), window_size=6, num_sink_tokens=2)
    ids, mask = left_padded(2, 14)
    cache = model.graft.cache()
    read(model, ids, cache, mask)
    new = text(2, 3, seed=5)
    wanted = read(model, new, cache.fork())
    turned = cache.fork()
    turned.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(read(model, new.flip(0), turned), wanted.flip(0))
    more = cache.fork()
    more.batch_repeat_interleave(2)
    assert more.batch_size == 4
    torch.testing.assert_close(read(model, new.repeat_interleave(2, 0), more), wanted.repeat_interleave(2, 0))
    with pytest.raises(ValueError, match=r"the cache holds 2 rows, the call has 4; batch_repeat_interleave\(n\)"):
        read(model, text(4, 3), cache)
    torch.testing.assert_close(read(model, new, cache), wanted)


def test_reset_forgets():
    model = grafted(base())
    cache = model.graft.cache()
    first = read(model, text(2, 9), cache)
    assert read(model, text(2, 9), cache).sub(first).abs().max() > 1e-3
    cache.reset()
    assert torch.equal(read(model, text(2, 9), cache), first)


def test_frozen_memories():
    model = grafted(base())
    cache = model.graft.cache()
    read(model, text(1, 9), cache)
    before = [state.memory.weights[0].clone() for state in cache.memories]
    cache.learn = False
    read(model, text(1, 9, seed=3), cache)
    assert all(torch.equal(a, state.memory.weights[0]) for a, state in zip(before, cache.memories, strict=True))
    cache.learn = True
    read(model, text(1, 9, seed=3), cache)
    assert not torch.equal(before[0], cache.memories[0].memory.weights[0])


def test_memories_alone_carry_from_piece_to_piece():
    """Training in pieces: the memory goes on, attention begins anew, and the graph can be cut."""
    model = grafted(base()).train()
    cache, ids = model.graft.cache(), text(2, 12)
    name = model.graft.decoder.cache_name
    model(ids, **{name: cache})
    carried = cache.memories_alone().detach()
    assert carried.get_seq_length() == 0
    loss = model(ids, labels=ids, **{name: carried}).loss
    assert not torch.equal(loss, model(ids, labels=ids).loss)
    loss.backward()
    assert model.graft.memories[0].q_proj.weight.grad.abs().max() > 0
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"carry cache\.memories_alone\(\) from piece to piece"):
        model(ids, **{name: cache})
    model.zero_grad()
    again = model(ids, labels=ids, **{name: cache.memories_alone().detach()}).loss
    torch.testing.assert_close(again, loss)
    again.backward()
    assert model.graft.memories[0].q_proj.weight.grad.abs().max() > 0


def test_padding_of_an_earlier_call_stays_invisible():
    model = grafted(base())
    ids, mask = left_padded(2, 9)
    cache = model.graft.cache()
    read(model, ids, cache, mask, position_ids=(mask.cumsum(1) - 1).clamp(0))
    more = text(2, 3, seed=5)
    alone = model.graft.cache()
    read(model, ids[:1, 5:], alone)
    position = torch.tensor([[4, 5, 6], [9, 10, 11]])
    found = read(model, more, cache, position_ids=position)
    torch.testing.assert_close(found[:1], read(model, more[:1], alone))


@pytest.mark.parametrize("options", [{}, {"window_size": 6, "num_sink_tokens": 2}], ids=["all tokens", "window"])
def test_recurrent_layers_of_a_base_are_forked_and_turned(options):
    model = grafted(base("qwen3_next"), **options)
    assert model.graft.layers == (1,)
    cache, new = model.graft.read(text(2, 9)), text(2, 3, seed=5)
    wanted = read(model, new, cache.fork())
    torch.testing.assert_close(read(model, new, cache.fork()), wanted)
    turned = cache.fork()
    turned.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(read(model, new.flip(0), turned), wanted.flip(0))
    torch.testing.assert_close(read(model, new, cache.fork()), wanted)
    one = cache.fork()
    read(model, new[:, :1], one)  # a single token goes through kernels that write in place
    torch.testing.assert_close(read(model, new, cache.fork()), wanted)


def test_a_call_that_failed_half_way_spoils_its_cache():
    model = grafted(base())
    cache = model.graft.read(text())
    whole = cache.fork()
    broken = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(model, text(), cache)
    broken.remove()
    with pytest.raises(ValueError, match="a call with this cache failed half-way"):
        read(model, text(), cache)
    assert read(model, text(), whole).isfinite().all()


def test_refusals():
    model, other = grafted(base()), grafted(base())
    cache = model.graft.cache()
    read(model, text(), cache)
    with pytest.raises(NotImplementedError, match="a memory cannot unlearn tokens"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="the cache belongs to another grafted model"):
        read(other, text(), cache)
    with pytest.raises(ValueError, match="is a DynamicCache, which holds no memories"):
        read(model, text(), DynamicCache())
    with model.graft.disabled(), pytest.raises(ValueError, match="the graft is off"):
        read(model, text(), cache)
    with pytest.raises(ValueError, match=r"attention_mask must be \[2, 20\] or \[2, 40\]"):
        read(model, text(), cache, torch.ones(2, 7))
    with pytest.raises(ValueError, match="is not supported"):
        model.generate(text(), assistant_model=base(), max_new_tokens=2)
    with pytest.raises(TypeError, match=r"save\(path\) writes it to a file"):
        copy.deepcopy(cache)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_file(name, options, tmp_path):
    model = grafted(base(name), **options)
    ids, mask = left_padded(2, 14)
    cache = model.graft.cache()
    read(model, ids, cache, mask)
    cache.learn = False
    cache.save(tmp_path / "m.safetensors", notes={"turns": 3})
    wanted = read(model, text(2, 5, seed=4), cache)
    again = grafted(base(name), **options)
    loaded = GraftCache.load(tmp_path / "m.safetensors", again)
    torch.testing.assert_close(read(again, text(2, 5, seed=4), loaded), wanted)
    header = GraftCache.header(tmp_path / "m.safetensors")
    assert (header.tokens, header.rows, header.learn, header.notes) == (14, 2, False, {"turns": 3})
    assert (header.layers, header.dtype) == (list(model.graft.layers), "float32")


@pytest.mark.parametrize("name", ["llama", "lfm2", "qwen3_next"])
def test_file_across_precisions(name, tmp_path):
    model = grafted(base(name))
    cache = model.graft.cache()
    read(model, text(), cache)
    cache.save(tmp_path / "m.safetensors")
    other = grafted(base(name).to(torch.bfloat16))
    loaded = GraftCache.load(tmp_path / "m.safetensors", other)
    assert loaded.layers[1].keys.dtype == torch.bfloat16
    assert torch.isfinite(read(other, text(), loaded)).all()


def test_files_of_other_models_are_refused(tmp_path):
    model = grafted(base())
    cache = model.graft.cache()
    with pytest.raises(ValueError, match="the cache is empty"):
        cache.save(tmp_path / "m.safetensors")
    read(model, text(), cache)
    file = tmp_path / "m.safetensors"
    cache.save(file)
    other = base()
    torch.nn.init.normal_(other.model.layers[1].mlp.up_proj.weight)
    with pytest.raises(ValueError, match="was written with another base model: its hash is"):
        GraftCache.load(file, grafted(other))
    with pytest.raises(ValueError, match="was written with another adapter: its hash is"):
        GraftCache.load(file, grafted(base(), trained=False))
    with pytest.raises(ValueError, match="was written with another adapter"):
        GraftCache.load(file, grafted(base(), window_size=6))
    with pytest.raises(ValueError, match=r"its layers are \[0, 1\], those of this model \[1\]"):
        GraftCache.load(file, grafted(base(), layers=(1,)))


def test_damaged_files(tmp_path):
    model = grafted(base())
    cache = model.graft.cache()
    read(model, text(), cache)
    file = tmp_path / "m.safetensors"
    cache.save(file)
    data = file.read_bytes()
    for damaged, message in (
        (data[: len(data) // 2], "is not a readable memory file"),
        (data[:-1] + bytes([data[-1] ^ 1]), "its contents do not agree with its checksum"),
        (data.replace(b'"tokens":"20"', b'"tokens":"21"'), "its contents do not agree with its checksum"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            GraftCache.load(file, model)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"not one written by GraftCache\.save"):
        GraftCache.load(file, model)
    with pytest.raises(FileNotFoundError, match="no memory file at"):
        GraftCache.load(tmp_path / "none", model)
    cache.memories[0].memory.weights[0][0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="numbers that are not finite in"):
        cache.save(tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()


def test_a_file_without_the_states_of_a_layer(tmp_path):
    model = grafted(base("lfm2"))
    cache = model.graft.cache()
    read(model, text(), cache)
    cache.layers[0].conv_states[0] = None
    cache.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="lacks the states of layer 0"):
        GraftCache.load(tmp_path / "m.safetensors", model)


def test_a_file_holds_no_text(tmp_path):
    """The tokens of a text are in no tensor of a file and not in its header."""
    model = grafted(base())
    cache = model.graft.cache()
    ids = torch.full((1, 12), VOCABULARY - 1)
    read(model, ids, cache)
    cache.save(tmp_path / "m.safetensors")
    whole = {name: t for name, t in load_file(tmp_path / "m.safetensors").items() if not t.is_floating_point()}
    assert all(int(t.max()) < VOCABULARY - 1 for t in whole.values() if t.numel())
