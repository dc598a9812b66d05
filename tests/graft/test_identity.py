"""A graft that is not trained, or is switched off, leaves every bit of its base."""

import copy
import pickle

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import titanslab
from grafted import MEMORY, NAMES, base, configs, grafted, left_padded, text
from titanslab import GraftConfig
from titanslab.graft import ungraft

GENERATE = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@torch.no_grad()
def outputs(model) -> list[torch.Tensor]:
    ids, mask = left_padded()
    found = [model(ids).logits, model(ids, attention_mask=mask).logits]
    found.append(model.generate(ids, attention_mask=mask, **GENERATE))
    found.append(model.generate(ids, attention_mask=mask, num_beams=2, num_return_sequences=2, **GENERATE))
    return found


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


EAGER, SDPA = ("eager", torch.bfloat16), ("sdpa", torch.float32)


@pytest.mark.parametrize(
    ("name", "attention", "dtype", "placement"),
    [(name, *way, "mag") for name in NAMES for way in (EAGER, SDPA)]
    + [(name, *way, placement) for placement in ("mal", "mac") for name, way in (("llama", EAGER), ("gpt2", SDPA))],
)
def test_start(name, attention, dtype, placement):
    model = base(name, attention, dtype)
    before, kind, names = outputs(model), type(model), set(model.state_dict())
    assert titanslab.graft(model, GraftConfig("all", memory=MEMORY, placement=placement)) is model
    assert same(before, outputs(model))
    assert type(model) is kind
    assert {n for n in model.state_dict() if "titans_memory" not in n} == names


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_off(name):
    model = base(name)
    before = outputs(model)
    grafted(model)
    assert not torch.equal(before[0], outputs(model)[0])
    with model.graft.disabled():
        assert same(before, outputs(model))
    assert not torch.equal(before[0], outputs(model)[0])
    model.graft.disable()
    assert same(before, outputs(model))
    model.graft.enable()
    assert same(before, outputs(ungraft(model)))
    assert not hasattr(model, "graft")


def test_window_alone_without_a_window_is_the_base():
    model = base()
    before = outputs(model)
    with grafted(model).graft.window_alone():
        assert same(before, outputs(model))


@pytest.mark.parametrize("placement", ["mag", "mal", "mac"])
def test_gradient_from_the_first_step(placement):
    model = grafted(base(), trained=False, placement=placement).train()
    ids = text()
    model(ids, labels=ids, use_cache=False).loss.backward()
    for memory in model.graft.memories:
        assert memory.output_projection.weight.grad.abs().max() > 0
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("titans_memory" in name for name in trainable)
    assert len(trainable) == len(list(model.graft.parameters()))


def test_copies_have_memories_of_their_own():
    model = grafted(base())
    ids = text()
    before = model(ids).logits
    other = copy.deepcopy(model)
    third = pickle.loads(pickle.dumps(model))
    for memory in model.graft.memories:
        torch.nn.init.zeros_(memory.output_projection.weight)
    for each in (other, third):
        torch.testing.assert_close(each(ids).logits, before)
        each.graft.disable()
    assert model.graft.enabled
    assert not torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_gradient_checkpointing_changes_nothing(name):
    """Two calls with other masks before one backward, which computes the layers of both again."""
    model = grafted(base(name)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids, mask = left_padded()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model(ids, attention_mask=mask, labels=ids).loss + model(text(seed=7), labels=ids).loss
        loss.backward()
        found.append([p.grad.clone() for p in model.graft.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (0, 9)}, "layers has the number 9, and the base has 2 layers, 0 to 1"),
        ({"layers": (0, -2)}, "layers names a layer twice"),
        ({"layers": "every"}, "layers must be one of all, third, lower, upper, none; got 'every'"),
        ({"layers": ()}, "layers must be one of"),
        ({"window_size": 1}, "window_size must be an integer of at least 2, got 1"),
        ({"placement": "gate"}, "placement must be one of mag, mal"),
        ({"memory": 3}, "memory must be a MemoryConfig, got int"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        grafted(base(), **options)


def test_wrong_models():
    model = grafted(base())
    with pytest.raises(ValueError, match="has a graft already"):
        titanslab.graft(model)
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(ValueError, match="BertEncoder attends to later tokens too"):
        titanslab.graft(BertForMaskedLM(BertConfig(**size, intermediate_size=8)))
    with pytest.raises(ValueError, match=r"BertEncoder\.forward is given hidden states, and no tokens"):
        titanslab.graft(BertLMHeadModel(BertConfig(**size, intermediate_size=8, is_decoder=True)))
    with pytest.raises(ValueError, match="has an encoder and a decoder"):
        titanslab.graft(T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=8, num_layers=1, d_ff=8, d_kv=4)))
    with pytest.raises(ValueError, match=r"attention_mask must be \[2, 20\]"):
        model(text(), attention_mask=torch.ones(2, 1, 20, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match="Linear has no list of layers with an attention module"):
        titanslab.graft(torch.nn.Linear(2, 2))


def test_a_model_that_reads_pictures_too():
    text_part = configs()["gemma3"].to_dict()
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 4}
    config = Gemma3Config(text_config=text_part, vision_config=eye | {"image_size": 28, "patch_size": 14}, **tokens)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    ids, mask = left_padded()
    ids = ids.clamp(max=50)
    with torch.no_grad():
        before = [model(ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, **GENERATE)]
        grafted(model, trained=False)
        after = [model(ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, **GENERATE)]
    assert same(before, after)
    assert model.graft.layers == (0, 1)
    ungraft(model)
    grafted(model, window_size=12)
    with pytest.raises(ValueError, match="masks that are made already, and neither a window"):
        model(ids, attention_mask=mask)


def test_config_round_trip():
    config = GraftConfig((1, -1), 512, 2, "mal", MEMORY)
    assert GraftConfig.from_dict(config.to_dict()) == config
    assert GraftConfig.from_dict(GraftConfig().to_dict()) == GraftConfig()
    with pytest.raises(ValueError, match="windowsize is no option of GraftConfig; did you mean 'window_size'"):
        GraftConfig.from_dict({"windowsize": 3})
