"""Modules that something wraps take part: adapters, hooks, quantised layers; or the wrapping is refused by name."""

import copy

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from titanslab import NeuralMemory, TitansConfig, TitansForCausalLM

IDS = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(1))


def model(variant="mac", **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"chunk_size": 4, "segment_len": 8, "num_persistent_tokens": 2, "window_size": 8}
    return TitansForCausalLM(TitansConfig(variant=variant, **{**sizes, **more, **options}))


def adapted(network, **options):
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    return peft.get_peft_model(network, config)


@pytest.mark.parametrize("options", [{}, {"memory_gate_keys": True}], ids=["plain", "gate_keys"])
@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac"])
def test_lora_on_every_linear_layer_takes_part(variant, options):
    network = adapted(model(variant, **options), target_modules="all-linear")
    network.train()(input_ids=IDS, labels=IDS).loss.backward()
    weights = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert not [n for n, p in weights.items() if p.grad is None or not p.grad.any()]
    with torch.no_grad():
        plain = network.eval()(input_ids=IDS).logits
        merged = copy.deepcopy(network).merge_and_unload()(input_ids=IDS).logits
        with network.disable_adapter():
            without = network(input_ids=IDS).logits
        base = model(variant, **options).eval()(IDS).logits
    torch.testing.assert_close(merged, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(without, base, rtol=1e-4, atol=1e-4)
    assert (plain - base).abs().max() > 0.1


def test_the_fused_loss_calls_the_head():
    found = []
    for fused in (False, True):
        network = model("lmm", tie_word_embeddings=False, fused_loss=fused)
        torch.manual_seed(1)
        network = adapted(network, target_modules=["lm_head"])
        loss = network.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for n, p in network.named_parameters() if "lm_head.lora" in n)])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_a_hook_on_any_linear_layer_runs(variant, training):
    network = model(variant).train(training)
    called = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, given, result, name=name: called.append(name))
    with torch.set_grad_enabled(training):
        network(IDS)
    assert {name for name, module in network.named_modules() if isinstance(module, nn.Linear)} == set(called)


def test_a_hook_that_changes_a_gate_changes_the_output():
    torch.manual_seed(0)
    layer, x = NeuralMemory(16, 2, chunk_size=4), torch.randn(2, 20, 16)
    before = layer(x)[0]
    handle = layer.theta_proj.register_forward_hook(lambda module, given, result: result - 100)
    silent = layer(x)[0]
    handle.remove()
    assert (silent - before).abs().max() > 1e-3
    torch.testing.assert_close(layer(x)[0], before)


@pytest.mark.filterwarnings("ignore::UserWarning")
@torch.no_grad()
@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_dynamic_quantisation(variant):
    network = model(variant).eval()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(network), {nn.Linear}, torch.qint8)
    off = (quantised(IDS).logits - network(IDS).logits).abs().mean()
    assert 0 < off < 0.1 * network(IDS).logits.abs().mean()


@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_offloaded_memories_are_refused_by_name(variant, tmp_path):
    network = model(variant).eval()
    network.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    other = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**places, "lm_head": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    with torch.no_grad(), pytest.raises(ValueError, match=r"offloading is not supported: place whole blocks"):
        other.eval()(IDS)


@torch.no_grad()
def test_blocks_may_lie_on_devices_of_their_own(tmp_path):
    network = model().eval()
    network.save_pretrained(tmp_path)
    names = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    other = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=dict.fromkeys(names, "cpu")).eval()
    torch.testing.assert_close(other(IDS).logits, network(IDS).logits)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_a_hook_on_any_convolution_or_norm_runs(variant, training):
    network = model(variant, segment_len=32, chunk_size=16).train(training)  # whole segments, which a kernel walks over
    called = set()
    hooked = {n: m for n, m in network.named_modules() if n.endswith(("conv1d", "norm"))}
    for name, module in hooked.items():
        module.register_forward_hook(lambda module, given, result, name=name: called.add(name))
    with torch.set_grad_enabled(training):
        network(IDS)
    assert called == set(hooked)


@pytest.mark.parametrize("options", [{}, {"backend": "recurrent"}], ids=["auto", "recurrent"])
def test_a_called_convolution_computes_the_same_and_its_hook_counts(options):
    torch.manual_seed(0)
    layer, x = NeuralMemory(16, 2, chunk_size=4, **options), torch.randn(2, 20, 16)
    mask, reset = torch.ones(2, 20, dtype=torch.bool), torch.zeros(2, 20, dtype=torch.bool)
    mask[0, :4], reset[1, 7] = False, True
    before = layer.update(x)
    first = layer.initial_state(1, persistent=x[0, :3])
    for call in ({}, {"state": before}, {"mask": mask, "reset": reset, "state": before, "initial": first}):
        y, state = layer(x, **call)
        with layer.q_conv1d.register_forward_hook(lambda module, given, result: None):
            again, after = layer(x, **call)
        torch.testing.assert_close(again, y)
        torch.testing.assert_close(after.conv, state.conv)
        with layer.k_conv1d.register_forward_hook(lambda module, given, result: (0.5 * result[0] - 1, result[1])):
            assert (layer(x, **call)[0] - y).abs().max() > 1e-4


def test_hooks_on_all_modules_and_a_replaced_forward_reach_every_linear_layer():
    network, called = model("lmm").train(), set()
    linear = {module for module in network.modules() if isinstance(module, nn.Linear)}
    with nn.modules.module.register_module_forward_hook(lambda module, given, result: called.add(module)):
        network(IDS)
    assert linear <= called
    called.clear()
    for module in linear:
        plain = module.forward
        module.forward = lambda x, plain=plain, module=module: (called.add(module), plain(x))[1]
    network(IDS)
    assert linear == called


@pytest.mark.parametrize("part", ["memory", "attention"])
def test_a_hook_that_mac_cannot_call_is_named(part):
    network = model("mac")
    getattr(network.model.layers[0].mixer, part).register_forward_hook(lambda module, given, result: None)
    with pytest.warns(UserWarning, match=f"a hook on the {part} of a MAC block is never called"):
        network(IDS)


def test_an_output_projection_of_ones_own_needs_no_weight():
    class Own(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    torch.manual_seed(0)
    layer, x = NeuralMemory(16, 2, chunk_size=4), torch.randn(2, 20, 16)
    y = layer(x, layer.initial_state(2))[0]
    layer.o_proj = Own(layer.o_proj)
    torch.testing.assert_close(layer(x, layer.initial_state(2))[0], y)
