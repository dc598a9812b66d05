"""The class for Time-Series-Library, called as its experiments call their models."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from titanslab import TitansForForecasting
from titanslab.integrations.tslib import Model

# What run.py of Time-Series-Library hands to a model, sizes aside.
ARGUMENTS = {
    "task_name": "long_term_forecast",
    "model": "Titans",
    "features": "M",
    "freq": "h",
    "seq_len": 32,
    "label_len": 16,
    "pred_len": 8,
    "seasonal_patterns": "Monthly",
    "enc_in": 3,
    "dec_in": 3,
    "c_out": 3,
    "d_model": 16,
    "n_heads": 2,
    "e_layers": 1,
    "d_layers": 1,
    "d_ff": 32,
    "factor": 1,
    "distil": True,
    "dropout": 0.1,
    "embed": "timeF",
    "activation": "gelu",
    "output_attention": False,
    "use_norm": 1,
    "patch_len": 8,
    "num_class": 2,
}


def configs(**changes):
    return SimpleNamespace(**(ARGUMENTS | changes))


def loader(arguments, count, length):
    """Batches of a long-term experiment: history, labels with the forecast's rows, and time features of both."""
    rows = torch.arange(length, dtype=torch.float32)
    series = torch.stack([torch.sin(rows * 2 * torch.pi / 8 + i) for i in range(arguments.enc_in)], dim=1)
    for start in torch.randint(0, length - arguments.seq_len - arguments.pred_len, (count,)).tolist():
        middle = start + arguments.seq_len
        x = series[start:middle].expand(4, -1, -1)
        y = series[middle - arguments.label_len : middle + arguments.pred_len].expand(4, -1, -1)
        yield x, y, torch.zeros(4, x.shape[1], 4), torch.zeros(4, y.shape[1], 4)


def test_the_long_term_experiment_trains_and_restores_it(tmp_path):
    torch.manual_seed(0)
    arguments = configs(dropout=0.0)
    model = Model(arguments).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for batch_x, batch_y, batch_x_mark, batch_y_mark in loader(arguments, 40, 200):
        optimizer.zero_grad()
        decoder = torch.zeros_like(batch_y[:, -arguments.pred_len :, :]).float()
        decoder = torch.cat([batch_y[:, : arguments.label_len, :], decoder], dim=1)
        outputs = model(batch_x, batch_x_mark, decoder, batch_y_mark)
        outputs = outputs[:, -arguments.pred_len :, 0:]
        assert outputs.shape == (4, arguments.pred_len, arguments.enc_in)
        loss = nn.MSELoss()(outputs, batch_y[:, -arguments.pred_len :, 0:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    torch.save(model.state_dict(), tmp_path / "checkpoint.pth")
    again = Model(arguments)
    again.load_state_dict(torch.load(tmp_path / "checkpoint.pth"))
    x = torch.randn(2, 32, 3)
    assert torch.equal(again.eval()(x, None, None, None), model.eval()(x, None, None, None))


def test_the_short_term_experiment_has_no_time_features_and_short_rows():
    model = Model(configs(task_name="short_term_forecast", seq_len=12, label_len=6, pred_len=6, enc_in=1, patch_len=16))
    x = torch.randn(5, 12, 1)
    decoder = torch.cat([x[:, -6:], torch.zeros(5, 6, 1)], dim=1)
    assert model(x, None, decoder, None).shape == (5, 6, 1)


def test_the_core_is_the_hugging_face_model_with_the_sizes_of_the_arguments():
    model = Model(configs(sequence_module="mag", memory={"chunk_size": 2}, use_norm=0)).model
    assert isinstance(model, TitansForForecasting)
    config = model.config
    sizes = (config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.patch_length)
    assert sizes == (16, 1, 32, 8)
    assert (config.sequence_module, config.memory.chunk_size, config.scaling) == ("mag", 2, "none")


def test_a_missing_value_under_the_mask_does_not_count():
    model = Model(configs()).eval()
    x = torch.randn(2, 32, 3)
    mask = torch.ones_like(x)
    mask[:, 5:9, 1] = 0
    other = torch.where(mask.bool(), x, 99.0)
    assert torch.equal(model(x, None, None, None, mask), model(other, None, None, None, mask))
    assert not torch.allclose(model(x, None, None, None), model(other, None, None, None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_name": "imputation"}, "task_name 'imputation'.*long_term_forecast and short_term_forecast"),
        ({"task_name": "classification"}, "task_name 'classification'"),
        ({"enc_in": None}, "configs has no 'enc_in'"),
        ({"n_heads": 3}, "num_attention_heads|hidden_size"),
        ({"sequence_module": "mamba"}, "sequence_module must be one of"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        Model(configs(**changes))
