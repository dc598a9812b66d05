"""Benchmark `genome`: Markov models and the three ways of reading agree with what the library says elsewhere."""

import json
import math
import random

import numpy as np
import pytest
from benchmarks.genome import main

from titanslab.data.dna.alphabet import ids_of
from titanslab.evaluation.perplexity import evaluate_perplexity
from titanslab.runs.loading import open_model
from titanslab.tasks.dna.markov import MarkovModel
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train

MODEL = {
    "preset": "tiny",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_persistent_tokens": 0,
}
WINDOW = 100


def recipe(variant: str, data: str):
    model = {**MODEL, "variant": variant, **({"window_size": "all"} if variant == "attention" else {})}
    training = {"steps": 2, "batch_size": 1, "cpu": True}
    table = {"model": model, "data": {"train": data, "tokenizer": "dna", "sequence_length": 64}, "training": training}
    return parse_recipe(table, [], origin="test")


def test_markov_models_and_runs(tmp_path):
    draw = random.Random(0).choices
    words = ["".join(draw("ACGT", k=600)) for _ in range(2)]
    for name, bases in zip(("train", "test"), words, strict=True):
        (tmp_path / f"{name}.fa").write_text(f">one\n{bases}\n")
    for variant in ("lmm", "attention"):
        train(recipe(variant, str(tmp_path / "train.fa")), tmp_path / variant)
    files = ["--train", str(tmp_path / "train.fa"), "--test", str(tmp_path / "test.fa"), "--orders", "0", "2"]
    files.append("--both-strands")
    runs = ["--run", f"memory={tmp_path / 'lmm'}", "--run", f"all={tmp_path / 'attention'}", "--window", str(WINDOW)]
    main([*files, *runs, "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    markov = {(row["markov"], row["adaptive"]): row for row in report["results"] if "markov" in row}
    assert markov.keys() == {(order, adaptive) for order in (0, 2) for adaptive in (False, True)}
    train_ids, test_ids = (ids_of(bases) for bases in words)
    for (order, adaptive), row in markov.items():
        bits = MarkovModel(order, [train_ids], both_strands=True).bits(test_ids, row["alpha"], adaptive)
        assert row["bits"] == pytest.approx(float(np.mean(bits)))
    memory, attention = ({r["run"]: r for r in report["results"] if "run" in r}[name] for name in ("memory", "all"))
    assert not {"stream", "frozen"} & attention.keys()
    for name, row in (("lmm", memory), ("attention", attention)):
        cut = [words[1][at : at + WINDOW] for at in range(0, 600, WINDOW)]
        assert row["windows"]["bases"] == 600
        assert row["windows"]["bits"] == pytest.approx(bits_of(tmp_path / name, cut, WINDOW), abs=1e-5)
    assert memory["stream"]["bits"] == pytest.approx(bits_of(tmp_path / "lmm", [words[1]], 600), abs=1e-5)
    assert memory["frozen"]["bits"] != memory["stream"]["bits"]
    assert [row["first"] for row in memory["stream"]["positions"]][-1] == 512


def bits_of(run, texts: list[str], length: int) -> float:
    model, tokenizer = open_model(str(run), "cpu")
    return evaluate_perplexity(model, tokenizer, texts, context_length=length).loss / math.log(2)
