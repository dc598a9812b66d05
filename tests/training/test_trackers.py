"""Trackers: an error that names the package, and what a tracker gets from a run."""

import json
import sys
from types import ModuleType

import pytest
from transformers.integrations import integration_utils

from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train
from titanslab.training.trackers import check_trackers


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("comet_ml", "comet-ml")]
)
def test_a_missing_package_is_named(name, package, monkeypatch):
    for library in ("tensorboard", "wandb", "comet"):
        monkeypatch.setattr(integration_utils, f"is_{library}_available", lambda: False)
    with pytest.raises(
        ValueError, match=rf"names '{name}', which needs the package {package}: pip install {package}, or"
    ):
        check_trackers([name])


def test_an_unknown_tracker_has_a_nearest_one():
    with pytest.raises(
        ValueError, match=r"names 'tensorbord'; the Trainer can report to .*; did you mean 'tensorboard'"
    ):
        check_trackers(["tensorbord"])


def test_tensorboard_gets_the_losses_in_the_run_folder(table, tmp_path, monkeypatch):
    """With a writer in the place of TensorBoard's, whose package may be missing here."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    written, library = {}, ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, log_dir):
            written["folder"] = log_dir

        def add_scalar(self, name, value, step):
            written[name, step] = value

        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    library.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, library.__name__, library)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    table["training"] |= {"steps": 2, "log_every": 1, "report_to": ["tensorboard"]}
    train(parse_recipe(table), tmp_path / "run")
    assert written["folder"] == str(tmp_path / "run" / "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(written["train/loss", line["step"]] == line["loss"] for line in lines)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
