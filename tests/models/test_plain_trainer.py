"""Hugging Face's own Trainer, without special arguments."""

import math

import peft
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from titanslab import TitansConfig, TitansForCausalLM

IDS = torch.randint(0, 64, (8, 24), generator=torch.Generator().manual_seed(0))
LABELS = IDS.clone()
LABELS[:, 0] = -100  # it has no prediction, and some versions of Trainer count it all the same
ROWS = [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)]


def model(variant="mac", **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"chunk_size": 4, "segment_len": 8, "num_persistent_tokens": 2, "window_size": 8}
    return TitansForCausalLM(TitansConfig(variant=variant, **{**sizes, **more, **options}))


def trainer(folder, network, **arguments):
    usual = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 3, "max_steps": 2, "logging_steps": 1}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    metrics = arguments.pop("compute_metrics", None)
    args = TrainingArguments(str(folder), **{**usual, **quiet, **arguments})
    return Trainer(network, args, train_dataset=ROWS, eval_dataset=ROWS, compute_metrics=metrics)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("variant", ["lmm", "mac", "attention"])
def test_evaluation_gives_the_loss_metrics_and_predictions(variant, tmp_path):
    seen = {}

    def metrics(prediction):
        seen["logits"] = prediction.predictions
        right = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": float(right.mean())}

    run = trainer(tmp_path, model(variant), compute_metrics=metrics)
    found = run.evaluate()
    with torch.no_grad():
        ids = torch.stack([row["input_ids"] for row in ROWS])
        wanted = run.model.eval()(ids, labels=ids)
    assert found["eval_loss"] == pytest.approx(wanted.loss.item(), rel=1e-4)
    assert 0 <= found["eval_accuracy"] <= 1
    torch.testing.assert_close(torch.from_numpy(seen["logits"]), wanted.logits, rtol=1e-4, atol=1e-4)
    assert run.predict(ROWS).predictions.shape == (8, 24, 64)


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    run = trainer(
        tmp_path, model(), eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, learning_rate=1e-2,
    )  # fmt: skip
    run.train()
    assert run.state.best_model_checkpoint is not None
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, rel=1e-4)


def test_label_smoothing_shifts_the_labels(tmp_path):
    plain, smooth, strong = (trainer(tmp_path, model(), label_smoothing_factor=s) for s in (0.0, 1e-6, 0.5))
    for run in (plain, smooth, strong):
        run.train()
    assert losses(smooth) == pytest.approx(losses(plain), abs=1e-3)
    with torch.no_grad():
        scores = torch.log_softmax(model()(IDS[:, :-1]).logits, -1)
    assert losses(strong)[0] == pytest.approx((losses(plain)[0] - scores.mean().item()) / 2, abs=0.05)


def test_accumulated_batches_have_the_loss_of_one(tmp_path):
    whole = trainer(tmp_path, model(), per_device_train_batch_size=8)
    parts = trainer(tmp_path, model(), per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for run in (whole, parts):
        run.train()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.parametrize("variant", ["lmm", "mac"])
def test_weight_decay_acts_on_matrices_alone(variant, tmp_path):
    run = trainer(tmp_path, model(variant), weight_decay=0.1)
    run.create_optimizer()
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    decayed = {names[id(p)] for g in run.optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == set(run.model.decay_parameter_names())
    assert "model.layers.0.mixer.memory.q_proj.weight" in decayed


def test_weight_decay_of_other_models_stays_as_it_was(tmp_path):
    run = trainer(tmp_path, model())  # the first Trainer with a model of ours
    other = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert run.get_decay_parameter_names(other) == ["0.weight"]


def test_adapters_of_gates_do_not_decay(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "theta_proj"], task_type="CAUSAL_LM")
    run = trainer(tmp_path, peft.get_peft_model(model("lmm"), config), weight_decay=0.1)
    names = set(run.get_decay_parameter_names(run.model))
    assert any("q_proj.lora_A" in name for name in names)
    assert not any("theta_proj" in name for name in names)
    run.train()
    assert all(math.isfinite(loss) for loss in losses(run))


def test_a_write_cost_without_gradient_is_refused(tmp_path):
    gradients = []
    for reentrant in (None, False):
        network = model("mac", memory_write_cost=0.5).train()
        if reentrant is not None:
            network.gradient_checkpointing_enable({"use_reentrant": reentrant})
        network(ROWS[0]["input_ids"][None], labels=ROWS[0]["labels"][None]).loss.backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(*gradients)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="memory_write_cost has no gradient under gradient checkpointing"):
        trainer(tmp_path, model("mac", memory_write_cost=0.5), **options).train()
    trainer(tmp_path, model("mac"), **options).train()


def test_a_loss_of_trainers_own_says_that_it_holds_no_write_cost(tmp_path):
    with pytest.warns(UserWarning, match="memory_write_cost adds nothing in a call without labels"):
        trainer(tmp_path, model("lmm", memory_write_cost=0.5), label_smoothing_factor=0.1, max_steps=1).train()
