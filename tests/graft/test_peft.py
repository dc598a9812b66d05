"""LoRA of PEFT beside a graft: trained, saved, loaded, merged and switched off together."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import titanslab
from grafted import base, grafted, text
from titanslab.graft import save_base

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


def with_lora(**options) -> PeftModel:
    torch.manual_seed(3)
    return grafted(get_peft_model(base(), LORA), **options).eval()


def test_both_are_trainable():
    model = with_lora().train()
    kind = type(model)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert kind.__name__ == "PeftModelForCausalLM"
    assert all("lora_" in name or "titans_memory" in name for name in trainable)
    assert not any("lora_" in name and "titans_memory" in name for name in trainable)
    ids = text()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)
    assert model.graft.memories[0].o_proj.weight.grad is not None


def test_both_are_switched_off():
    model, ids = with_lora(), text()
    before = model(ids).logits
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, base()(ids).logits)
        found = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, base().generate(ids, max_new_tokens=4, do_sample=False))
    assert torch.equal(model(ids).logits, before)
    with model.graft.disabled():
        torch.manual_seed(3)
        assert torch.equal(model(ids).logits, get_peft_model(base(), LORA)(ids).logits)


def test_round_trip(tmp_path):
    model, ids = with_lora(), text()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    again = titanslab.load_graft(tmp_path, base())
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    trainable = titanslab.load_graft(tmp_path, base(), trainable=True)
    assert all(p.requires_grad for name, p in trainable.named_parameters() if "lora_" in name)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(titanslab.load_graft(tmp_path, base())(ids).logits, model(ids).logits)


def test_merged(tmp_path):
    model, ids = with_lora(), text()
    before = model(ids).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, before)
    assert type(merged) is type(base())
    with pytest.raises(ValueError, match=r"the weights of the base have changed since graft\(\)"):
        merged.save_pretrained(tmp_path / "memory")
    save_base(merged, tmp_path / "base")
    merged.save_pretrained(tmp_path / "memory")
    torch.testing.assert_close(titanslab.load_graft(tmp_path / "memory")(ids).logits, before)


def test_a_cache_goes_with_its_lora(tmp_path):
    model = with_lora()
    cache = model.graft.cache()
    with torch.no_grad():
        model(text(), **{model.graft.decoder.cache_name: cache})
    cache.save(tmp_path / "m.safetensors")
    titanslab.GraftCache.load(tmp_path / "m.safetensors", with_lora())
    with pytest.raises(ValueError, match="was written with another adapter"):
        titanslab.GraftCache.load(tmp_path / "m.safetensors", grafted(base()))


def test_lora_after_the_graft_is_refused(tmp_path):
    wrapped: nn.Module = get_peft_model(grafted(base()), LORA)
    with pytest.raises(ValueError, match=r"has frozen them; call get_peft_model before graft\(\)"):
        wrapped(text())
    beside = LoraConfig(r=2, target_modules=["q_proj"], exclude_modules=r".*titans_memory.*")
    wrapped = get_peft_model(grafted(base()), beside)
    assert wrapped(text()).logits.isfinite().all()
    with pytest.raises(ValueError, match="call get_peft_model before graft"):
        wrapped.graft.save_pretrained(tmp_path)
