"""`TitansForForecasting`: shapes, gradients, missing values, state, saving."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from titanslab import TitansForecastingConfig, TitansForForecasting
from titanslab.models.forecasting_config import CHANNEL_MIXINGS, SEQUENCE_MODULES

SIZES = {
    "context_length": 24,
    "prediction_length": 6,
    "num_input_channels": 3,
    "patch_length": 6,
    "patch_stride": 3,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "dropout": 0.0,
}
WITH_MEMORY = ("lmm", "mac", "mag", "mal")


def make(**options):
    torch.manual_seed(0)
    return TitansForForecasting(TitansForecastingConfig(**(SIZES | options))).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "past_values": torch.randn(2, 24, 3).cumsum(1),
        "future_values": torch.randn(2, 6, 3),
        "past_time_index": torch.tensor([0, 5]),
    }


@pytest.mark.parametrize("module", SEQUENCE_MODULES)
def test_shapes_and_gradients(module, batch):
    model = make(sequence_module=module, num_persistent_tokens=2, linear_skip=True, scaling_affine=True, cycle=4)
    output = model.train()(**batch)
    assert output.prediction_outputs.shape == (2, 6, 3)
    assert output.quantile_outputs is None
    output.loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.parametrize("mixing", CHANNEL_MIXINGS)
def test_saved_and_loaded_model_is_the_same(mixing, batch, tmp_path):
    model = make(channel_mixing=mixing, loss="quantile", quantiles=(0.1, 0.5, 0.9), cycle=4, scaling_affine=True)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch).to_tuple(), model(**batch).to_tuple())


@pytest.mark.parametrize("module", ["lmm", "gated_deltanet"])
def test_a_missing_weight_starts_as_in_a_new_model(module, batch, tmp_path):
    model = make(sequence_module=module, channel_mixing="fft")
    kept = {n: t for n, t in model.state_dict().items() if not n.startswith(("layers.1", "head", "position"))}
    torch.manual_seed(2)
    loaded = TitansForForecasting.from_pretrained(None, config=model.config, state_dict=kept)
    for name, tensor in loaded.state_dict().items():
        new = model.state_dict()[name]
        if name in kept:
            assert torch.equal(tensor, new)
        elif tensor.numel() > 100:  # drawn anew, from the same distribution
            assert not torch.equal(tensor, new)
            assert tensor.std().item() == pytest.approx(new.std().item(), rel=0.35), name


def test_missing_values_do_not_matter(batch):
    model = make(sequence_module="mag", linear_skip=True, cycle=4)
    mask = torch.rand(2, 24, 3) > 0.3
    mask[0, :, 1] = False  # no value of this column
    targets = torch.ones(2, 6, 3, dtype=torch.bool)
    targets[1, 2:] = False
    outputs = []
    for filling in (0.0, 1e9, float("nan")):
        past = batch["past_values"].masked_fill(~mask, filling)
        future = batch["future_values"].masked_fill(~targets, filling)
        outputs.append(model(past, mask, future, targets, batch["past_time_index"]))
    nan = batch["past_values"].masked_fill(~mask, float("nan"))
    future = batch["future_values"].masked_fill(~targets, float("nan"))
    outputs.append(model(nan, None, future, None, batch["past_time_index"]))
    for output in outputs[1:]:
        assert torch.equal(output.prediction_outputs, outputs[0].prediction_outputs)
        assert torch.equal(output.loss, outputs[0].loss)
    point = outputs[0].prediction_outputs
    expected = ((point - batch["future_values"])[targets] ** 2).mean()
    torch.testing.assert_close(outputs[0].loss, expected)


def test_a_constant_history_is_forecast_as_itself():
    model = make()
    forecast = model(torch.full((1, 24, 3), 7.0)).prediction_outputs
    assert forecast.isfinite().all()
    assert (forecast - 7).abs().max() < 0.1


@pytest.mark.parametrize("module", [m for m in SEQUENCE_MODULES if m != "none"])
def test_a_patch_does_not_see_later_rows(module):
    model = make(sequence_module=module, num_persistent_tokens=1)
    x = torch.randn(1, 24, 3)
    other = x.clone()
    other[:, 15:] += 1.0
    a, b = (model.encode(values)[0] for values in (x, other))
    torch.testing.assert_close(a[:, :4], b[:, :4])  # patches of rows 0..5, 3..8, 6..11, 9..14
    assert not torch.allclose(a[:, 4:], b[:, 4:])


@pytest.mark.parametrize("module", WITH_MEMORY)
def test_the_memory_is_carried_from_window_to_window(module, batch):
    model = make(sequence_module=module, num_persistent_tokens=2)
    past = batch["past_values"]
    first = model(past, return_state=True)
    second = model(past, state=first.state, return_state=True)
    assert not torch.allclose(first.prediction_outputs, second.prediction_outputs)
    third = model(past, state=first.state)  # no call changes a state in place
    assert torch.equal(second.prediction_outputs, third.prediction_outputs)
    start = [block.memory.memory.weights[0] for block in first.state]
    assert all(not torch.equal(a, b.memory.memory.weights[0]) for a, b in zip(start, second.state, strict=True))
    with pytest.raises(ValueError, match="state holds 6 rows, and past_values 3"):
        model(past[:1], state=first.state)


def test_a_memory_that_read_nothing_changes_nothing(batch):
    model = make()
    state = model(batch["past_values"], return_state=True).state
    start = tuple(
        type(s)(type(s.memory)(layer.mixer.memory.initial_state(6).memory, s.memory.conv))
        for s, layer in zip(state, model.layers, strict=True)
    )
    torch.testing.assert_close(
        model(batch["past_values"], state=start).prediction_outputs, model(batch["past_values"]).prediction_outputs
    )


def test_quantiles_rise_and_the_point_is_the_median(batch):
    model = make(loss="quantile", linear_skip=True)
    output = model(**batch)
    assert output.quantile_outputs.shape == (2, 6, 3, 9)
    assert (output.quantile_outputs.diff(dim=-1) >= 0).all()
    assert torch.equal(output.prediction_outputs, output.quantile_outputs[..., 4])


def test_pinball_loss_of_the_median_is_the_absolute_error(batch):
    model = make(loss="quantile", quantiles=[0.5])
    output = model(**batch)
    expected = (output.prediction_outputs - batch["future_values"]).abs().mean()
    torch.testing.assert_close(output.loss, expected)


def test_a_cycle_is_found_by_its_phase(batch):
    model = make(cycle=4, scaling="none")
    with torch.no_grad():
        model.cycle.values.copy_(torch.arange(12.0).view(4, 3))
        model.head.weight.zero_()
        model.head.bias.zero_()
    forecast = model(batch["past_values"], past_time_index=torch.tensor([1, 2])).prediction_outputs
    rows = (torch.tensor([1, 2])[:, None] + 24 + torch.arange(6)) % 4
    assert torch.equal(forecast, model.cycle.values[rows])
    with pytest.raises(ValueError, match="past_time_index is missing, and cycle=4 needs it"):
        model(batch["past_values"])


def test_defaults_have_twelve_patches_and_a_short_chunk():
    config = TitansForecastingConfig()
    assert (config.num_patches, config.segment_len, config.window_size) == (12, 12, 12)
    assert (config.memory.chunk_size, config.memory.num_heads, config.memory_head_dim) == (4, 4, 16)
    assert TitansForecastingConfig(memory={"depth": 1}).memory.chunk_size == 4
    assert TitansForecastingConfig(chunk_size=2).memory.chunk_size == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_module": "lmn"}, "sequence_module must be one of .*did you mean 'lmm'"),
        ({"variant": "mac"}, "variant is 'mac', but follows from sequence_module='lmm'; leave it out"),
        ({"channel_mixing": "dft"}, "channel_mixing must be one of mlp, fft, variates"),
        ({"context_length": 4}, "patch_length must be an integer of at most 4, got 6"),
        ({"loss": "quantile", "quantiles": [0.1, 0.9]}, "quantiles must rise and hold 0.5"),
        ({"quantiles": [0.5]}, "quantiles must be empty for loss='mse'"),
        ({"dropout": 1}, "dropout must be a number of at least 0 and below 1"),
        ({"scaling": "std"}, "scaling must be one of instance, none"),
        ({"predction_length": 6}, "unknown field 'predction_length'"),
        ({"cycle": -1}, "cycle must be an integer of at least 0"),
    ],
)
def test_an_impossible_value_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        TitansForecastingConfig(**(SIZES | options))


def test_a_history_of_another_length_is_named(batch):
    with pytest.raises(ValueError, match=r"past_values must have shape \[B, 24, 3\], got \[2, 20, 3\]"):
        make()(batch["past_values"][:, :20])
    with pytest.raises(ValueError, match=r"future_values must have shape \[2, 6, 3\], got \[2, 5, 3\]"):
        make()(batch["past_values"], future_values=batch["future_values"][:, :5])


def test_weight_decay_acts_on_matrices_alone():
    names = make(channel_mixing="fft", cycle=4, scaling_affine=True, linear_skip=True).decay_parameter_names()
    assert {"head.weight", "linear_skip.weight", "layers.0.channel_mixing.parts.0.weights.0"} <= set(names)
    assert not [n for n in names if "bias" in n or "cycle" in n or "theta" in n or "memory_weights" in n]


@pytest.mark.parametrize("module", WITH_MEMORY)
def test_windows_before_the_history_are_read_by_the_memory(module, batch):
    model = make(sequence_module=module, memory_windows=2, cycle=4)
    plain = make(sequence_module=module, cycle=4)
    plain.load_state_dict(model.state_dict())
    past, index = torch.randn(2, 72, 3).cumsum(1), torch.tensor([3, 8])
    state = None
    for i in range(3):
        expected = plain(past[:, 24 * i : 24 * (i + 1)], past_time_index=index + 24 * i, state=state, return_state=True)
        state = expected.state
    found = model(past, future_values=batch["future_values"], past_time_index=index)
    torch.testing.assert_close(found.prediction_outputs, expected.prediction_outputs)
    found.loss.backward()
    with pytest.raises(ValueError, match=r"past_values must have shape \[B, 72, 3\]"):
        model(past[:, 24:], past_time_index=index)


def test_windows_before_the_history_need_a_memory():
    with pytest.raises(ValueError, match="memory_windows must be 0 for sequence_module='attention', without a memory"):
        TitansForecastingConfig(**SIZES, sequence_module="attention", memory_windows=1)
