"""A graft in a folder: opened with its base again, refused where something does not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import titanslab
from grafted import MEMORY, base, grafted, text
from titanslab import GraftConfig
from titanslab.graft import graft_of, load_memories, save_base, ungraft


@pytest.fixture
def saved(tmp_path):
    """The folders of a base and of an adapter, and the logits of the grafted model."""
    base("llama").save_pretrained(tmp_path / "base")
    model = grafted(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), layers=(-1,), window_size=16, placement="mal"
    )
    model.save_pretrained(tmp_path / "memory")
    return tmp_path / "base", tmp_path / "memory", model(text()).logits.detach()


def test_round_trip(saved):
    _, memory, logits = saved
    model = titanslab.load_graft(memory)
    assert torch.equal(model(text()).logits, logits)
    assert model.graft.config == GraftConfig((-1,), 16, 4, "mal", MEMORY)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert all(p.requires_grad for p in titanslab.load_graft(memory, trainable=True).graft.parameters())


def test_files(saved):
    _, memory, _ = saved
    assert sorted(file.name for file in memory.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(name.startswith("layers.1.") for name in load_file(memory / "adapter_model.safetensors"))
    config = json.loads((memory / "adapter_config.json").read_text())
    assert config["peft_type"] == "TITANS"
    assert config["base_model_class"] == "LlamaForCausalLM"
    assert config["layers"] == [1]


def test_another_place_and_precision(saved, tmp_path):
    folder, memory, logits = saved
    folder = folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"the base .* of .* cannot be opened: .*; give base="):
        titanslab.load_graft(memory)
    assert torch.equal(titanslab.load_graft(memory, folder)(text()).logits, logits)
    assert torch.equal(titanslab.load_graft(memory, base("llama"))(text()).logits, logits)
    half = titanslab.load_graft(memory, folder, dtype=torch.bfloat16)
    torch.testing.assert_close(half(text()).logits.float(), logits, atol=0.05, rtol=0.1)


def test_saved_again_over_an_older_one(saved):
    folder, memory, logits = saved
    model = titanslab.load_graft(memory, folder)
    with torch.no_grad():
        model.graft.memories[0].o_proj.weight.mul_(2)
    model.save_pretrained(memory, state_dict={}, safe_serialization=True)
    again = titanslab.load_graft(memory, folder)
    assert torch.equal(again(text()).logits, model(text()).logits)
    assert not torch.equal(again(text()).logits, logits)
    other = grafted(base("llama"), layers=(-1,), window_size=16, placement="mal")
    load_memories(other, memory)
    assert torch.equal(other(text()).logits, model(text()).logits)


def test_wrong_bases(saved):
    _, memory, _ = saved
    other = base("llama")
    torch.nn.init.normal_(other.model.layers[0].self_attn.q_proj.weight)
    with pytest.raises(ValueError, match="is the adapter of another base: the hash of its weights is"):
        titanslab.load_graft(memory, other)
    assert titanslab.load_graft(memory, other, check_base=False)(text()).logits.isfinite().all()
    with pytest.raises(ValueError, match="of width 32 with 2 layers, and this base has width 32 and 1 layers"):
        titanslab.load_graft(memory, base("llama", num_hidden_layers=1))


def test_damaged_adapters(saved, tmp_path):
    folder, memory, _ = saved
    weights, config = memory / "adapter_model.safetensors", memory / "adapter_config.json"
    data, text_ = weights.read_bytes(), config.read_text()
    for damaged, message in (
        (data[:-5], "is not a readable adapter file"),
        (data[:-1] + bytes([data[-1] ^ 1]), "do not agree with its checksum"),
    ):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            titanslab.load_graft(memory, folder)
    weights.write_bytes(data)
    for old, new, message in (
        ('"num_heads": 2', '"num_heads": 4', r"has layers\.1\..* of shape .* is needed"),
        ('"layers": [\n    1\n  ]', '"layers": [\n    "x"\n  ]', "layers"),
        ('"window_size"', '"window"', "window is no option of GraftConfig; did you mean 'window_size'"),
        ("TITANS", "LORA", "is of the kind 'LORA', not TITANS"),
        ('"weights": "', '"weights": "0', "belongs to another adapter_config.json"),
        ("{", "", "is not valid JSON"),
    ):
        assert old in text_
        config.write_text(text_.replace(old, new, 1))
        with pytest.raises(ValueError, match=message) as found:
            titanslab.load_graft(memory, folder)
        assert "\n" not in str(found.value)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter: adapter_config\.json is missing"):
        titanslab.load_graft(memory)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        titanslab.load_graft(tmp_path / "none")


def test_a_trained_base_is_saved_by_itself(saved, tmp_path):
    folder, memory, _ = saved
    model = titanslab.load_graft(memory, folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.1)
    with pytest.raises(ValueError, match=r"the weights of the base have changed since graft\(\)"):
        model.save_pretrained(tmp_path / "other")
    save_base(model, tmp_path / "trained")
    assert not any("titans" in name for name in load_file(tmp_path / "trained" / "model.safetensors"))
    model.save_pretrained(tmp_path / "other")
    assert torch.equal(titanslab.load_graft(tmp_path / "other")(text()).logits, model(text()).logits)


def test_a_base_after_ungraft_saves_itself(saved, tmp_path):
    folder, memory, _ = saved
    model = ungraft(titanslab.load_graft(memory, folder))
    model.save_pretrained(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(plain(text()).logits, base("llama")(text()).logits)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no graft"):
        graft_of(model)
