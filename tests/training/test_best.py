"""Epochs, the best validation and an early end: what is kept, and that an interrupted run ends at the same step."""

import json
import math

import pytest

from titanslab.training.best import FACTS, WEIGHTS
from titanslab.training.recipe import load_recipe, parse_recipe
from titanslab.training.run import train

from .test_run import Stopped, metrics, same_weights, stop_at, weights


@pytest.fixture
def unseen(tmp_path):
    """A validation text of another kind, which a long training at a high rate makes worse."""
    path = tmp_path / "unseen.txt"
    path.write_text("".join(f"{i} zebras quietly jumped over {i + 3} boxes.\n" for i in range(12)))
    return path


@pytest.fixture
def kept(table, unseen):
    """A recipe that keeps the best of its validations, which get worse after the first few."""
    table["data"] |= {"validation": str(unseen)}
    table["training"] |= {"keep": "best", "eval_every": 2, "learning_rate": 3e-2, "schedule": "constant", "steps": 24}
    return table


def interrupted(table, folder, monkeypatch, step, micro=2):
    """The run of a recipe that ends in a step, after `micro` micro-batches of it."""
    recipe = parse_recipe(table)
    with monkeypatch.context() as patch:
        stop_at(patch, step, micro)
        with pytest.raises(Stopped):
            train(recipe, folder)


def validations(folder):
    return {line["step"]: line["eval_loss"] for line in metrics(folder) if "eval_loss" in line}


def test_the_weights_are_those_of_the_best_validation(kept, tmp_path):
    result = train(parse_recipe(kept), tmp_path / "run")
    losses = validations(tmp_path / "run")
    best = min(losses, key=losses.get)
    assert min(losses) < best < max(losses), "the case must get better and then worse"
    assert (result["best_step"], result["best_score"]) == (best, losses[best])
    assert result["steps"] == 24

    kept["training"] |= {"keep": "last", "steps": best}
    train(parse_recipe(kept), tmp_path / "short")
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "short"))


def test_patience_ends_a_run_also_after_an_interruption(kept, tmp_path, monkeypatch):
    kept["training"] |= {"patience": 3, "steps": 200}
    result = train(parse_recipe(kept), tmp_path / "whole")
    losses = list(validations(tmp_path / "whole").values())
    assert losses.index(min(losses)) == len(losses) - 4
    assert result["steps"] == 2 * len(losses)

    interrupted(kept, tmp_path / "run", monkeypatch, result["steps"] - 2)
    again = train(parse_recipe(kept), tmp_path / "run", resume=True)
    assert again["resumed_from"]
    assert {name: again[name] for name in ("steps", "best_step", "best_score")} == {
        name: result[name] for name in ("steps", "best_step", "best_score")
    }
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_damaged_weights_of_the_best_validation_are_named(kept, tmp_path, monkeypatch):
    interrupted(kept, tmp_path / "run", monkeypatch, 20)
    file = tmp_path / "run" / WEIGHTS
    assert json.loads((tmp_path / "run" / FACTS).read_text())["step"] < 15
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"best\.safetensors.*cannot be read.*training\.keep=last"):
        train(parse_recipe(kept), tmp_path / "run", resume=True)
    kept["training"]["keep"] = "last"
    assert train(parse_recipe(kept), tmp_path / "run", resume=True)["steps"] == 24


def test_epochs_set_the_steps_and_the_validations(table, unseen, tmp_path):
    table["data"] |= {"validation": str(unseen), "pack_documents": False, "sequence_length": 64}
    del table["training"]["steps"]
    table["training"] |= {"epochs": 0.5, "batch_size": 8, "accumulation": 1}
    result = train(parse_recipe(table), tmp_path / "run")
    assert result["steps"] == math.ceil(0.5 * 400 / 8)
    assert list(validations(tmp_path / "run")) == [result["steps"]], "the last step is validated"
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert "epochs = 0.5" in text
    assert "\nsteps" not in text
    assert load_recipe(tmp_path / "run" / "recipe.toml").training.epochs == 0.5


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("training", {"epochs": 2}, "training.steps = 12 and training.epochs = 2 both set the length of the run"),
        ("training", {"patience": 2}, "training.patience needs data.validation, which is missing"),
        ("training", {"keep": "best"}, 'training.keep = "best" needs data.validation, which is missing'),
        ("training", {"keep": "first"}, "training.keep is 'first'; allowed: last, best"),
        ("training", {"keep": "best", "sharding": "fsdp"}, 'training.keep = "best" needs whole weights'),
    ],
)
def test_values_that_cannot_work_together(table, section, values, words):
    table[section] |= values
    with pytest.raises(ValueError, match=words):
        parse_recipe(table)


def test_an_assigned_length_takes_the_place_of_the_other(table):
    assert parse_recipe(table, ["training.epochs=3"]).training.epochs == 3
    assert parse_recipe(table, ["training.epochs=3", "training.steps=7"]).training.epochs is None


def test_epochs_of_rows_without_an_end(table, tmp_path):
    del table["training"]["steps"]
    table["training"]["epochs"] = 1
    table["data"] = {"task": "kv_recall", "sequence_length": 32}
    with pytest.raises(ValueError, match=r"training\.epochs = 1 needs data with an end.*training\.steps"):
        train(parse_recipe(table), tmp_path / "run")
