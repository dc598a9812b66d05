"""The Hugging Face interface: arguments, losses, saving and loading, dtypes, initial values, weight decay."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from titanslab import TitansConfig, TitansForCausalLM, TitansModel
from titanslab.memory import NeuralMemory

VARIANTS = ["lmm", "mal", "mag", "mac", "attention"]


def make(variant: str = "mac", **overrides) -> TitansForCausalLM:
    torch.manual_seed(0)
    fields = dict(
        vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, memory_expansion=2, chunk_size=4,
        segment_len=8, window_size=6, num_persistent_tokens=3, intermediate_size=32,
    )  # fmt: skip
    return TitansForCausalLM(TitansConfig(variant=variant, **(fields | overrides)))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 31, (2, 19), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load_with_auto_classes(variant, ids, tmp_path):
    model = make(variant).eval()
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is TitansForCausalLM
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(loaded.state_dict()[name], t) for name, t in model.state_dict().items())
    # The address of a loaded tensor depends on the file; kernels may round differently at another address.
    close = dict(atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits, **close)
    trunk = AutoModel.from_pretrained(tmp_path).eval()
    assert type(trunk) is TitansModel
    torch.testing.assert_close(trunk(ids).last_hidden_state, model.model(ids).last_hidden_state, **close)


def test_auto_classes_know_titans_on_import(tmp_path):
    make("lmm").save_pretrained(tmp_path)
    program = (
        "import titanslab, sys; assert 'titanslab.models.modeling' not in sys.modules\n"
        "from transformers import AutoModelForCausalLM\n"
        f"print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "TitansForCausalLM"


def test_the_memory_needs_torch_alone():
    program = (
        "import sys; sys.modules['transformers'] = None; sys.modules['safetensors'] = None\n"
        "import titanslab.memory, torch\n"
        "y, _ = titanslab.memory.NeuralMemory(8, 2)(torch.zeros(1, 3, 8)); print(tuple(y.shape))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "(1, 3, 8)"


def test_a_missing_weight_starts_as_in_a_new_model(tmp_path):
    """Loading builds the model on the meta device. Weights that the file lacks must be initialised, the others kept."""
    from safetensors.torch import load_file, save_file

    model = make("lmm")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = [name for name in tensors if "memory_weights" in name or name.endswith("alpha_proj.bias")]
    save_file({k: t for k, t in tensors.items() if k not in gone}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = TitansForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == sorted(gone)
    fresh, mine = make("lmm").state_dict(), loaded.state_dict()
    for name, value in model.state_dict().items():
        if name in gone:
            assert mine[name].isfinite().all()
            torch.testing.assert_close(mine[name].std(), fresh[name].std(), atol=0, rtol=0.5)
            assert abs(float(mine[name].mean() - fresh[name].mean())) < 0.5
        else:
            assert torch.equal(mine[name], value)


def test_attention_with_convolutions_starts_as_a_memory_does_and_loads_what_there_is(tmp_path):
    """k and q have one projection, and k's convolution is q's delayed by a token, so a query finds the token after."""
    from safetensors.torch import load_file, save_file

    model = make("attention", attention_conv_size=4, hidden_size=64, initializer_range=0.001)
    mixer = model.model.layers[0].mixer
    assert torch.equal(mixer.attention.q_proj.weight, mixer.attention.k_proj.weight)
    assert 0.1 < float(mixer.attention.q_proj.weight.detach().std()) < 0.15  # 64 ** -0.5
    q, k = mixer.convs["q"].weight.detach(), mixer.convs["k"].weight.detach()
    assert float((k[1:] - q[:-1]).abs().max()) < 0.2 < float(q[:-1].abs().mean())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mixer.convs.k.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = TitansForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert list(info["missing_keys"]) == ["model.layers.0.mixer.convs.k.weight"]
    mine = loaded.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in tensors.items())
    fresh = mine["model.layers.0.mixer.convs.k.weight"]
    torch.testing.assert_close(fresh.std(), k.std(), atol=0, rtol=0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_loses_little_and_keeps_gates_exact(variant, ids, tmp_path):
    model = make(variant).eval()
    model.save_pretrained(tmp_path)
    low = TitansForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    logits = low(ids).logits
    assert logits.dtype == torch.bfloat16
    error = (logits.float() - model(ids).logits).abs().max() / model(ids).logits.abs().max()
    assert 0 < error < 0.1
    for memory in (m for m in low.modules() if isinstance(m, NeuralMemory)):
        assert memory.theta_proj.weight.dtype == memory.memory_weights[0].dtype == torch.float32
        assert memory.q_proj.weight.dtype == torch.bfloat16
    cache = low(ids).past_key_values
    assert all(t.dtype == torch.float32 for n, t in cache.tensors().items() if "memory.weights" in n)
    cast = make(variant).bfloat16().eval()
    assert cast(ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_trains(variant, ids):
    model = make(variant)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_loss_is_of_the_next_token(ids):
    model = make().eval()
    out = model(ids, labels=ids.masked_fill(ids == ids[0, 3], -100))
    kept = ids[:, 1:] != ids[0, 3]
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1][kept], ids[:, 1:][kept])
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("num_items", [None, 40])
def test_fused_loss_equals_the_plain_one(ids, num_items):
    plain, fused = make().double(), make(fused_loss=True).double()
    extra = {} if num_items is None else {"num_items_in_batch": num_items}
    a, b = plain(ids, labels=ids, **extra), fused(ids, labels=ids, **extra)
    assert b.logits is None
    assert a.logits is not None
    torch.testing.assert_close(a.loss.double(), b.loss, atol=1e-6, rtol=0)  # the loss of Hugging Face is float32
    a.loss.backward()
    b.loss.backward()
    for (name, p), q in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=0, msg=name)
    assert fused.eval()(ids, labels=ids).logits is not None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_labels_of_block_outputs_are_in_the_loss_of_training_alone(ids, fused, checkpointing):
    model = make(num_hidden_layers=3, fused_loss=fused).double()
    if checkpointing:
        model.gradient_checkpointing_enable()
    labels = torch.full((*ids.shape, 2), -100)
    labels[0, 4, 0], labels[1, 2, 0], labels[1, 7, 1] = 5, 6, 7
    hidden = model(ids, output_hidden_states=True).hidden_states
    outputs = torch.stack((hidden[1][0, 4], hidden[1][1, 2], hidden[2][1, 7]))
    logits = model.lm_head(model.model.norm(outputs))
    hints = torch.nn.functional.cross_entropy(logits, torch.tensor([5, 6, 7]))
    plain = model(ids, labels=ids)
    out = model(ids, labels=ids, block_targets=labels)
    assert out.hidden_states is None
    torch.testing.assert_close((out.loss - plain.loss).double(), hints, atol=1e-6, rtol=0)
    half = model(ids, labels=ids, block_targets=labels, num_items_in_batch=2 * ids[:, 1:].numel())
    torch.testing.assert_close((2 * half.loss).double(), out.loss.double(), atol=1e-6, rtol=0)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    none = model(ids, labels=ids, block_targets=torch.full_like(labels, -100)).loss
    torch.testing.assert_close(none, plain.loss)
    model.eval()
    torch.testing.assert_close(model(ids, labels=ids, block_targets=labels).loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize("shape", [(2, 19), (2, 18, 1), (2, 19, 2), (2, 19, 0)])
def test_labels_of_block_outputs_of_another_shape_are_refused(ids, shape):
    with pytest.raises(ValueError, match=r"block_targets must have shape \[2, 19, N\] with N from 1 to 1, .* got \["):
        make()(ids, labels=ids, block_targets=torch.zeros(shape, dtype=torch.long))


def test_logits_to_keep(ids):
    model = make().eval()
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])


def test_outputs_follow_conventions(ids):
    model = make().eval()
    out = model(ids, output_hidden_states=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 19, 16)] * 3
    assert torch.equal(out.hidden_states[-1], model.model(ids).last_hidden_state)
    assert isinstance(model(ids, return_dict=False), tuple)
    assert model(ids, use_cache=False).past_key_values is None
    assert model.train()(ids).past_key_values is None
    embedded = model.eval()(inputs_embeds=model.get_input_embeddings()(ids))
    assert torch.equal(embedded.logits, model(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds"),
        ({"position_ids": torch.zeros(2, 19)}, "position_ids is not an argument.*document_ids"),
        ({"output_attentions": True}, "output_attentions=True is not supported"),
        ({"attention_mask": torch.ones(2, 18)}, r"attention_mask must have shape \[2, 19\], got \[2, 18\]"),
        ({"attention_mask": torch.ones(2, 1, 19, 19)}, "attention_mask must have shape"),
        ({"document_ids": torch.ones(2, 18)}, r"document_ids must have shape \[2, 19\]"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.int64)}, "at least one token"),
    ],
)
def test_wrong_arguments_are_named(ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        make()(**({"input_ids": ids} | arguments))


@pytest.mark.parametrize("variant", VARIANTS)
def test_decay_leaves_gates_norms_persistents_and_m0_alone(variant):
    model = make(variant, tie_word_embeddings=False)
    decayed = set(model.decay_parameter_names())
    spared = {name for name, _ in model.named_parameters()} - decayed
    assert "lm_head.weight" in decayed
    assert "model.layers.0.mlp.up_proj.weight" in decayed
    parts = ["norm", "persistent"]
    if variant != "attention":
        parts += ["theta_proj", "eta_proj", "alpha_proj", "memory_weights", "conv1d"]
        assert "model.layers.0.mixer.memory.q_proj.weight" in decayed
    for part in parts:
        assert any(part in name for name in spared)
        assert not any(part in name for name in decayed)
    assert all(dict(model.named_parameters())[name].dim() == 2 for name in decayed)


def test_tied_and_untied_heads():
    tied = make()
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    untied = make(tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    tied.resize_token_embeddings(40)
    assert tied.lm_head.weight.shape == (40, 16)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


@torch.no_grad()
def test_initial_values_are_the_memorys_own():
    model = make("lmm", hidden_size=64, initializer_range=0.001)
    memory = model.model.layers[0].mixer.memory
    assert 0.02 < float(memory.q_proj.weight.std()) < 0.2
    assert float(memory.alpha_proj.bias.std()) > 0.5
    assert float(model.model.layers[0].mlp.up_proj.weight.std()) < 0.002
    assert 0.7 < float(model.model.layers[0].mixer.persistent.std()) < 1.3
