"""Classifiers: pooling, losses, saving, trunks from pre-trained models, and the baselines with the same face."""

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from titanslab import TitansConfig, TitansForCausalLM, TitansForSequenceClassification
from titanslab.data import load_tokenizer
from titanslab.models.classifiers import classifier_config, new_classifier
from titanslab.models.cnn import CNNForSequenceClassification
from titanslab.models.pooling import pool
from titanslab.models.trunk_classifier import TrunkForSequenceClassification
from titanslab.runs.classifier import pretrained_classifier

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GDN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "layer_types": ["linear_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 0,
}
KINDS = {
    "lmm": (None, SMALL | {"variant": "lmm", "num_persistent_tokens": 0}),
    "mac": (None, SMALL | {"segment_len": 8, "num_persistent_tokens": 2}),
    "attention": (None, SMALL | {"variant": "attention", "window_size": None}),
    "qwen3_next": ("qwen3_next", GDN),
    "cnn": ("cnn", {"embedding_size": 8, "dense_size": 16}),
}
LABELS = ["no", "yes", "maybe"]


def build(kind, **more):
    architecture, options = KINDS[kind]
    torch.manual_seed(0)
    named = {"labels": LABELS, "tokenizer": load_tokenizer("dna"), "max_length": 60}
    return new_classifier(classifier_config(architecture, options | more, **named)).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.ones(2, 60, dtype=torch.int64)
    mask[0, 41:] = 0
    ids = torch.randint(0, 4, (2, 60)).where(mask == 1, 7)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2])}


def test_pooling_counts_real_tokens_alone():
    hidden = torch.arange(12.0).view(1, 6, 2)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[4.0, 5.0]]
    assert pool(hidden, mask, "last").tolist() == [[8.0, 9.0]]
    assert pool(hidden, None, "mean").tolist() == [[5.0, 6.0]]
    assert pool(hidden, None, "last").tolist() == [[10.0, 11.0]]
    assert pool(hidden, torch.zeros(1, 6), "mean").tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[1, 6\]"):
        pool(hidden, mask[:, :3], "mean")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_row_do_not_depend_on_its_padding_and_a_saved_model_gives_them(kind, batch, tmp_path):
    model = build(kind)
    outputs = model(**batch)
    assert outputs.logits.shape == (2, 3)
    expected = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])
    assert torch.allclose(outputs.loss, expected)
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad) or kind in ("lmm", "mac")
    assert model.score.weight.grad.abs().sum() > 0
    alone = model(input_ids=batch["input_ids"][:1, :41]).logits[0]
    assert torch.allclose(alone, outputs.logits[0], atol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert again.config.id2label == dict(enumerate(LABELS))
    # A copy lies at aligned addresses, as the first model does. At others some CPUs sum a product in another order.
    assert torch.equal(copy.deepcopy(again)(**batch).logits, outputs.logits)


def test_order_of_the_bases_before_matters_only_for_models_that_read_it(batch):
    model = build("lmm", classifier_pooling="last")
    changed = batch["input_ids"].clone()
    changed[1, 0] = (changed[1, 0] + 1) % 4
    one, two = (
        model(input_ids=ids, attention_mask=batch["attention_mask"]).logits for ids in (batch["input_ids"], changed)
    )
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])


@pytest.mark.parametrize("kind", ["lmm", "attention"])
def test_a_language_model_gives_its_trunk(kind, batch, tmp_path):
    config = TitansConfig.preset("tiny", vocab_size=8, **KINDS[kind][1])
    language_model = TitansForCausalLM(config).eval()
    language_model.save_pretrained(tmp_path)
    model = pretrained_classifier(tmp_path, LABELS, classifier_pooling="last")
    assert type(model) is TitansForSequenceClassification
    assert (model.num_labels, model.config.classifier_pooling) == (3, "last")
    wanted = language_model.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.model.state_dict().items())
    assert model.score.weight.isfinite().all()
    assert 0 < model.score.weight.std() < 0.1
    hidden = language_model.model(batch["input_ids"][1:]).last_hidden_state[:, -1]
    assert torch.allclose(model(batch["input_ids"][1:]).logits, hidden @ model.score.weight.T, atol=1e-6)
    model.save_pretrained(tmp_path / "classifier")
    other = pretrained_classifier(tmp_path / "classifier", ["a", "b"])
    assert other.score.weight.shape == (2, 16)
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)


def test_a_language_model_of_transformers_gives_its_trunk(batch, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    trunk = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_next", vocab_size=8, **GDN))
    trunk.save_pretrained(tmp_path)
    model = pretrained_classifier(tmp_path, LABELS)
    assert type(model) is TrunkForSequenceClassification
    wanted = trunk.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.model.state_dict().items())
    assert model(**batch).logits.shape == (2, 3)


def test_several_classes_at_once_a_regression_and_the_price_of_writes(batch):
    config = TitansConfig.preset("tiny", "lmm", vocab_size=8, **SMALL, num_labels=3)
    several = TitansForSequenceClassification(config)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    outputs = several(**inputs, labels=targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, targets)
    assert torch.allclose(outputs.loss, expected)
    one = TitansForSequenceClassification(TitansConfig.preset("tiny", "lmm", vocab_size=8, **SMALL, num_labels=1))
    assert one(**inputs, labels=torch.tensor([0.5, 1.0])).loss.isfinite()
    free = build("lmm").train()
    priced = build("lmm", memory_write_cost=0.5).train()
    difference = priced(**batch).loss - free(**batch).loss
    assert 0 < difference < 0.5
    with pytest.raises(ValueError, match="document_ids is not an argument of a classifier"):
        free(**batch, document_ids=batch["attention_mask"])


def test_the_cnn_has_the_layers_of_the_benchmark():
    model = build("cnn")
    assert type(model) is CNNForSequenceClassification
    names = [type(layer).__name__ for layer in model.cnn]
    plain = ["Conv1d", "BatchNorm1d", "MaxPool1d"]
    assert names == ["Conv1d", "BatchNorm1d", "ReLU", "MaxPool1d", *plain, *plain]
    assert [layer.out_channels for layer in model.cnn if hasattr(layer, "out_channels")] == [16, 8, 4]
    with pytest.raises(ValueError, match=r"input_ids has 61 tokens a row, and config\.max_length is 60; cut the rows"):
        model(torch.zeros(1, 61, dtype=torch.int64))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("qwen3_nex", {}, r"architecture 'qwen3_nex' is not known; give 'cnn', .*; did you mean 'qwen3_next'\?"),
        ("cnn", {"embeding_size": 3}, r"the CNN has no option 'embeding_size'; did you mean 'embedding_size'\?"),
        ("cnn", {"max_length": 20}, "max_length must be an integer of at least 57, got 20"),
        (None, {"hiden_size": 16}, "TitansConfig has no field 'hiden_size'"),
        (None, {"classifier_pooling": "max"}, "classifier_pooling"),
        (None, {"classifier_dropout": 1.0}, r"classifier_dropout must be a number of at least 0 and below 1, got 1\.0"),
    ],
)
def test_wrong_options_are_named(architecture, options, message):
    with pytest.raises(ValueError, match=message):
        classifier_config(architecture, options, labels=LABELS, tokenizer=load_tokenizer("dna"), max_length=60)


def test_a_classifier_needs_two_labels():
    with pytest.raises(ValueError, match="a classifier needs at least two labels, got x"):
        classifier_config(None, {}, labels=["x"], tokenizer=load_tokenizer("dna"), max_length=60)
