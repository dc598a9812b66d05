"""Baselines of forecasting: the same inputs, outputs and files as `TitansForForecasting`."""

import pytest
import torch
from transformers import AutoModel, AutoModelForTimeSeriesPrediction, PatchTSTConfig, PatchTSTForPrediction

from titanslab.models.forecaster import ARCHITECTURES, forecaster, forecaster_config, option_names

LENGTHS = {"context_length": 24, "prediction_length": 6, "num_input_channels": 3}
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1, "dropout": 0.0}
SIZES = {
    "titans": SMALL | {"patch_length": 6, "patch_stride": 3},
    "linear": {},
    "dlinear": {"moving_average": 5},
    "patchtst": SMALL | {"patch_length": 6, "patch_stride": 3},
    "itransformer": SMALL,
}


def make(name, **options):
    torch.manual_seed(0)
    return forecaster(name, LENGTHS | SIZES[name] | options).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "past_values": torch.randn(4, 24, 3).cumsum(1),
        "future_values": torch.randn(4, 6, 3),
        "past_time_index": torch.arange(4),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_gradients_and_files(name, batch, tmp_path):
    model = make(name, loss="quantile", quantiles=[0.1, 0.5, 0.9], cycle=4, scaling="instance", scaling_affine=True)
    output = model(**batch)
    assert output.prediction_outputs.shape == (4, 6, 3)
    assert output.quantile_outputs.shape == (4, 6, 3, 3)
    output.loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert [n for n in without if not n.endswith("position_enc")] == []  # PatchTST's are fixed sines
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForTimeSeriesPrediction):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is type(model)
        torch.testing.assert_close(loaded(**batch).to_tuple(), output.to_tuple())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_missing_values_do_not_matter(name, batch):
    model = make(name)
    mask = torch.rand(4, 24, 3) > 0.3
    past = batch["past_values"]
    a, b = (model(past.masked_fill(~mask, value), mask).prediction_outputs for value in (0.0, float("nan")))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "dlinear"])
def test_a_forecast_follows_the_scale_of_its_history(name, batch):
    model, past = make(name), batch["past_values"]
    shifted = model(100 * past + 7).prediction_outputs
    torch.testing.assert_close(shifted, 100 * model(past).prediction_outputs + 7, rtol=1e-3, atol=1e-2)


def test_patchtst_is_that_of_transformers(batch):
    ours = make("patchtst")
    inner = ours.patchtst
    theirs = PatchTSTForPrediction(PatchTSTConfig(**(inner.config.to_dict() | {"scaling": "std"}))).eval()
    theirs.load_state_dict(inner.state_dict())
    expected = theirs(past_values=batch["past_values"], future_values=batch["future_values"])
    output = ours(**batch)
    torch.testing.assert_close(output.prediction_outputs, expected.prediction_outputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-4, atol=1e-4)


def test_linear_models_are_their_equations(batch):
    past = batch["past_values"].transpose(1, 2)
    model = make("linear", scaling="none")
    expected = past @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model(**batch).prediction_outputs, expected.transpose(1, 2))
    model = make("dlinear")
    padded = torch.cat((past[..., :1].repeat(1, 1, 2), past, past[..., -1:].repeat(1, 1, 2)), -1)
    trend = padded.unfold(-1, 5, 1).mean(-1)
    expected = model.trend(trend) + model.season(past - trend)
    torch.testing.assert_close(model(**batch).prediction_outputs, expected.transpose(1, 2))


def test_inverted_attention_mixes_columns_and_knows_no_order_of_them(batch):
    model, past = make("itransformer"), batch["past_values"]
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(past[..., order]).prediction_outputs, model(past).prediction_outputs[..., order])
    other = past.clone()
    other[..., 0] += torch.randn(24)
    assert not torch.allclose(model(other).prediction_outputs[..., 1], model(past).prediction_outputs[..., 1])


def test_initial_values_are_torchs():
    model = make("itransformer", hidden_size=64)
    bound = 24**-0.5
    assert model.embedding.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
    assert not torch.equal(model.encoder.layers[0].linear1.weight, make("itransformer").head.weight)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("patchts", {}, "architecture must be one of titans, linear, .*did you mean 'patchtst'"),
        ("dlinear", {"moving_averge": 5}, "architecture 'dlinear' has no option 'moving_averge'; did you mean"),
        ("dlinear", {"moving_average": 4}, "moving_average must be odd, got 4"),
        ("linear", {"sequence_module": "lmm"}, "architecture 'linear' has no option 'sequence_module'"),
        ("itransformer", {"num_attention_heads": 3}, "hidden_size must be a multiple of num_attention_heads"),
        ("patchtst", {"norm_type": "rms"}, "norm_type must be one of batchnorm, layernorm"),
        ("patchtst", {"patch_length": 24}, "patch_length must be an integer of at most 23"),
        (None, {"vocab_size": 3}, "architecture 'titans' has no option 'vocab_size'"),
        (None, {"loss": "mes"}, "loss must be one of mse, mae, huber, quantile; got 'mes'; did you mean 'mse'"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        forecaster_config(name, LENGTHS | options)


def test_options_are_those_that_a_model_reads():
    assert {"sequence_module", "memory_depth", "chunk_size", "cycle"} <= set(option_names("titans"))
    assert "moving_average" in option_names("dlinear")
    assert not [name for name in option_names("linear") if name.startswith(("id2label", "model_type", "dtype"))]
