"""Recipes with [sequences]: a classifier from a table to a run folder, resumed, and from a language model of DNA."""

import random

import pytest

from titanslab.runs.classifier import open_classifier
from titanslab.runs.sequences import read_facts
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train

from .test_best import interrupted
from .test_run import metrics, same_weights, weights


@pytest.fixture(scope="session")
def table_file(tmp_path_factory):
    """200 sequences; those with the label 1 hold far more A and T, on both strands."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("dna") / "train.tsv"
    lines = [
        f"{''.join(draw.choices('ACGT', (4, 1, 1, 4) if label else (1, 1, 1, 1), k=draw.randint(20, 32)))}\t{label}\n"
        for label in [0, 1] * 100
    ]
    path.write_text("sequence\tlabel\n" + "".join(lines))
    return path


MODEL = {
    "preset": "tiny",
    "variant": "lmm",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_persistent_tokens": 0,
}


@pytest.fixture
def sequences(table_file):
    """A recipe as nested values."""
    return {
        "model": dict(MODEL),
        "sequences": {"train": str(table_file), "validation_share": 0.2},
        "training": {
            "epochs": 4,
            "batch_size": 16,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "keep": "best",
            "save_every": 12,
            "cpu": True,
        },
    }


def test_a_classifier_learns_and_an_interruption_changes_nothing(sequences, tmp_path, monkeypatch):
    result = train(parse_recipe(sequences), tmp_path / "run")
    accuracies = [line["eval_accuracy"] for line in metrics(tmp_path / "run") if "eval_accuracy" in line]
    assert len(accuracies) == 4
    assert result["best_score"] == max(accuracies) > 0.75
    facts = read_facts(tmp_path / "run")
    assert (facts.labels, facts.max_length, facts.rc) == (["0", "1"], 32, True)
    model, tokenizer, _ = open_classifier(tmp_path / "run", "cpu")
    assert model.config.id2label == {0: "0", 1: "1"}
    assert len(tokenizer) == model.config.vocab_size

    interrupted(sequences, tmp_path / "again", monkeypatch, 30, micro=1)
    train(parse_recipe(sequences), tmp_path / "again", resume=True)
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_baselines_and_a_pretrained_trunk(sequences, table_file, tmp_path):
    genome = tmp_path / "genome.fa"
    genome.write_text(">one\n" + "ACGTTGCA" * 200 + "\n")
    language = {
        "model": dict(MODEL),
        "data": {"train": str(genome), "tokenizer": "dna", "sequence_length": 64},
        "training": {"steps": 2, "batch_size": 2, "cpu": True},
    }
    train(parse_recipe(language), tmp_path / "language")
    sequences["training"] |= {"epochs": 0.1}
    sequences["sequences"] |= {"validation_share": 0.1, "test_share": 0.1}
    for name, model in {
        "cnn": {"architecture": "cnn", "max_length": 64},
        "fine": {"pretrained": str(tmp_path / "language")},
        "attention": {**MODEL, "variant": "attention"},
    }.items():
        sequences["model"] = model
        assert train(parse_recipe(sequences), tmp_path / name)["steps"] == 2
    aside = {name: (tmp_path / name / "test.tsv").read_text().splitlines() for name in ("cnn", "fine")}
    assert aside["cnn"] == aside["fine"]
    assert len(aside["cnn"]) == 1 + 20
    before, after = weights(tmp_path / "language"), weights(tmp_path / "fine")
    name = "model.layers.0.mlp.down_proj.weight"
    assert 0 < (before[name] - after[name]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("sequences", {"train": ""}, "sequences.train is missing"),
        ("sequences", {"validation_share": 1.0}, "sequences.validation_share"),
        ("model", {"architecture": "cnn", "variant": "lmm"}, "cannot take effect together"),
        ("model", {"hiden_size": 3}, r"unknown key 'hiden_size' in \[model\]; did you mean 'hidden_size'"),
    ],
)
def test_wrong_recipes(sequences, section, values, words):
    sequences[section] |= values
    with pytest.raises(ValueError, match=words):
        parse_recipe(sequences)
