"""The watchdog names the step and the layer where a NaN or an infinity began."""

import warnings

import pytest
import torch
from torch import nn

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.training.run import train
from titanslab.training.watchdog import NonFiniteError, check_step, first_bad_activation


class Bad(nn.Module):
    """Multiplies by `factor` on the way there, and the gradient by `back` on the way back."""

    def __init__(self, factor=1.0, back=1.0):
        super().__init__()
        self.factor, self.back = factor, back

    def forward(self, x):
        x = x * self.factor
        if x.requires_grad:
            x.register_hook(lambda grad: grad * self.back)
        return x


class Net(nn.Module):
    def __init__(self, **bad):
        super().__init__()
        self.first, self.bad, self.middle, self.last = (nn.Linear(2, 2), Bad(**bad), nn.Linear(2, 2), nn.Linear(2, 2))

    def forward(self, x):
        return self.last(self.middle(self.bad(self.first(x))))


def run(model):
    inputs = {"x": torch.ones(1, 2)}
    loss = model(**inputs).square().sum()
    loss.backward()
    return loss, inputs


def test_finite_steps_pass():
    model = Net()
    loss, inputs = run(model)
    check_step(model, loss, inputs, 1)


def test_first_layer_with_a_bad_output_is_named():
    model = Net(factor=float("inf"))
    loss, inputs = run(model)
    with pytest.raises(NonFiniteError, match=r"^step 7: the loss is not finite; first layer .*: bad\."):
        check_step(model, loss, inputs, 7)
    assert first_bad_activation(Net(), inputs) is None


def test_bad_gradient_with_finite_outputs_names_the_layer_nearest_to_the_loss():
    model = Net(back=float("nan"))
    loss, inputs = run(model)
    with pytest.raises(NonFiniteError, match=r"step 3: the gradient is not finite; .*: first\.bias"):
        check_step(model, loss, inputs, 3)
    check_step(model, loss, inputs, 3, gradients=False)


def test_bad_parameter_is_named_first():
    model = Net()
    with torch.no_grad():
        model.middle.weight[0, 0] = float("nan")
    loss, inputs = run(model)
    with pytest.raises(NonFiniteError, match=r"parameter middle\.weight is not finite before the step"):
        check_step(model, loss, inputs, 1)


def test_a_run_that_breaks_down_stops_and_keeps_its_checkpoints(recipe, tmp_path, monkeypatch):
    from titanslab.training import trainer as trainer_module

    plain = trainer_module.TitansTrainer.training_step

    def poisoned(self, model, *args, **kwargs):
        if self.state.global_step == 7:
            with torch.no_grad():
                model.get_parameter("model.layers.0.mlp.down_proj.weight").fill_(float("inf"))
        return plain(self, model, *args, **kwargs)

    monkeypatch.setattr(trainer_module.TitansTrainer, "training_step", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 8: .* parameter model\.layers\.0\.mlp\.down_proj\.weight"):
        train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-5" / "complete.json").exists()
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("step", [10, 12])  # where a checkpoint is due, and at the end
def test_weights_that_are_not_finite_are_never_saved(recipe, tmp_path, monkeypatch, step):
    from titanslab.training import trainer as trainer_module

    plain = trainer_module.TitansTrainer.training_step

    def poisoned(self, model, *args, **kwargs):
        loss = plain(self, model, *args, **kwargs)
        if self.state.global_step == step - 1 and self.accelerator.sync_gradients:
            with torch.no_grad():
                model.get_parameter("model.layers.0.mlp.down_proj.weight").fill_(float("inf"))
        return loss

    monkeypatch.setattr(trainer_module.TitansTrainer, "training_step", poisoned)
    name, last = (
        rf"step {step}: parameter model\.layers\.0\.mlp\.down_proj\.weight",
        f"checkpoint-{(step - 1) // 5 * 5}",
    )
    with pytest.raises(NonFiniteError, match=rf"{name} is not finite .* The last good checkpoint is .*{last}$"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert last in names
    assert f"checkpoint-{step}" not in names


def test_the_search_for_the_layer_warns_of_no_hooks():
    model = TitansForCausalLM(
        TitansConfig.preset(
            "tiny", variant="mac", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    ids = torch.arange(8)[None]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("inf"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert first_bad_activation(model, {"input_ids": ids}) is not None
