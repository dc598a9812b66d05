"""`titans evaluate dna` and `titans track` from end to end, their files, and errors in one line before work begins."""

import csv
import json
import re

import numpy as np
import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data import load_tokenizer
from titanslab.data.dna.alphabet import reverse_complement
from titanslab.models.classifiers import classifier_config, new_classifier
from titanslab.runs.sequences import SequenceFacts, read_facts, write_facts
from titanslab.tasks.dna.scores import classification_scores

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LABELS = ["no", "yes"]


@pytest.fixture
def classifier(tmp_path):
    """Makes the folder of an untrained classifier with the head of a seed."""

    def make(seed, **facts):
        torch.manual_seed(seed)
        tokenizer, folder = load_tokenizer("dna"), tmp_path / f"run{seed}"
        options = SMALL | {"variant": "lmm", "num_persistent_tokens": 0}
        config = classifier_config(None, options, labels=LABELS, tokenizer=tokenizer, max_length=30)
        new_classifier(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_facts(folder, SequenceFacts(LABELS, 30, **facts))
        return folder

    return make


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    rows = [("".join(rng.choice(list("ACGT"), 20 + i % 15)), LABELS[i % 2]) for i in range(40)]
    path = tmp_path / "test.tsv"
    path.write_text("bases\tkind\n" + "".join(f"{bases}\t{label}\n" for bases, label in rows))
    return path


def test_predictions_give_the_scores_of_the_summary(classifier, data, titans):
    folder = classifier(0, rc=True)
    assert read_facts(folder) == read_facts(folder / "checkpoints" / "step-3") == SequenceFacts(LABELS, 30, True)
    code, out, err = titans("evaluate", "dna", "--model", folder, "--data", data, "--no-rc", "--device", "cpu")
    assert (code, "accuracy 0." in out) == (0, True), err
    results = folder / "evaluation" / "dna"
    summary = json.loads((results / "summary.json").read_text())
    with open(results / "predictions.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == summary["sequences"] == 40
    found = np.array([[float(row["p_no"]), float(row["p_yes"])] for row in rows])
    targets = np.array([LABELS.index(row["label"]) for row in rows])
    assert classification_scores(targets, found) == {
        name: pytest.approx(summary[name]) for name in ("accuracy", "mcc", "roc_auc")
    }
    assert [row["prediction"] for row in rows] == [LABELS[i] for i in found.argmax(1)]
    assert sum(sum(part.values()) for part in summary["confusion"].values()) == 40
    titans("evaluate", "dna", "-m", folder, "-d", data, "--device", "cpu")  # the run's own way is with averages
    averaged = json.loads((results / "summary.json").read_text())
    assert (summary["rc"], averaged["rc"]) == (False, True)


def test_averages_over_both_strands_are_the_same_for_both(classifier, tmp_path, titans):
    folder = classifier(0)
    given = "ACGTTACCGATTAGACCA"
    for name, bases in (("a", given), ("b", reverse_complement(given))):
        (tmp_path / f"{name}.tsv").write_text(f"seq\tlabel\n{bases}\tyes\n{given[:9]}\tno\n")
        titans("evaluate", "dna", "-m", folder, "-d", tmp_path / f"{name}.tsv", "--rc", "-o", tmp_path / name)
    lines = [(tmp_path / name / "predictions.tsv").read_text().splitlines()[1].split("\t") for name in "ab"]
    assert [float(p) for p in lines[0][3:]] == pytest.approx([float(p) for p in lines[1][3:]], abs=1e-6)


def test_several_runs_have_a_mean_and_a_spread(classifier, data, tmp_path, titans):
    folders = [classifier(seed) for seed in (0, 1)]
    words = [word for folder in folders for word in ("-m", folder)]
    code, out, err = titans("evaluate", "dna", *words, "-d", data, "-o", tmp_path / "mean")
    assert code == 0, err
    assert "mean of 2 runs: accuracy" in out
    each = [json.loads((folder / "evaluation/dna/summary.json").read_text())["accuracy"] for folder in folders]
    whole = json.loads((tmp_path / "mean" / "summary.json").read_text())
    assert whole["accuracy"]["mean"] == pytest.approx(np.mean(each))
    assert whole["accuracy"]["spread"] == pytest.approx(np.std(each, ddof=1))


def test_faults_of_an_evaluation_are_one_line(classifier, data, tmp_path, titans):
    folder = classifier(0)
    other = tmp_path / "other.tsv"
    other.write_text("seq\tlabel\nACGTACGT\tmaybe\nACGTACGT\tno\n")
    plain = tmp_path / "plain"
    TitansForCausalLM(TitansConfig.preset("tiny", "lmm", vocab_size=8, **SMALL)).save_pretrained(plain)
    for words, message in (
        (("-m", folder, "-d", tmp_path / "none.tsv"), "--data: '.*none.tsv' does not exist"),
        (("-m", folder, "-d", other), "has the label 'maybe'; the labels of the model are no, yes"),
        (("-m", plain, "-d", data), "holds no sequences.json, so it is no classifier of sequences"),
        (("-m", folder, "-d", data, "--label-column", "x"), "has no label column 'x'; its columns: bases, kind"),
        (("-m", folder), "Missing option '--data'"),
    ):
        code, _, err = titans("evaluate", "dna", *words)
        assert code == 2
        assert err.count("\n") <= 2 + err.count("classifying")
        assert re.search(message, err), err


@pytest.fixture
def language_model(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "lm"
    TitansForCausalLM(TitansConfig.preset("tiny", "lmm", vocab_size=8, **SMALL)).save_pretrained(folder)
    load_tokenizer("dna").save_pretrained(folder)
    return folder


def test_a_track_of_a_region(language_model, tmp_path, titans):
    genome = tmp_path / "g.fa"
    genome.write_text(">chr1\n" + "ACGTTGCAGA" * 30 + "\n")
    out = tmp_path / "track"
    words = ("--model", language_model, "--region", "chr1:11-250", "--bin", 7, "--output", out, "--device", "cpu")
    code, shown, err = titans("track", genome, *words)
    assert code == 0, err
    assert "bits per base over 240 bases" in shown
    rows = [line.split("\t") for line in (out / "loss.bedgraph").read_text().splitlines()]
    assert [(row[0], int(row[1]), int(row[2])) for row in rows[:2]] == [("chr1", 10, 14), ("chr1", 14, 21)]
    assert int(rows[-1][2]) == 250
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["bases"], summary["region"]) == (240, "chr1:11-250")
    assert (out / "track.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = titans("track", genome, *words)
    assert (code, "already holds files" in err) == (2, True)


def test_genes_along_a_track(language_model, tmp_path, titans):
    genome, bed, out = tmp_path / "g.fa", tmp_path / "genes.bed", tmp_path / "track"
    genome.write_text(">chr1\n" + "ACGTTGCAGA" * 30 + "\n>chr2\n" + "ACGGN" * 20 + "\n")
    genes = [("chr1", 0, 120, "left", "+"), ("chr1", 100, 300, "over", "-"), ("chr2", 3, 99, "second", "+")]
    bed.write_text("track name=x\n" + "".join(f"{c}\t{a}\t{b}\t{n}\t0\t{s}\n" for c, a, b, n, s in genes))
    words = (genome, "-m", language_model, "--genes", bed, "--device", "cpu", "--piece", 16)
    code, shown, err = titans("track", *words, "-o", out)
    assert (code, "genes.tsv" in shown) == (0, True), err
    head, *rows = [line.split("\t") for line in (out / "genes.tsv").read_text().splitlines()]
    assert head == ["name", "chromosome", "start", "end", "strand", "bases", "loss", "surprise", "write"]
    for (chromosome, start, end, name, strand), row in zip(genes, rows, strict=True):
        assert row[:5] == [name, chromosome, str(start), str(end), strand]
        for column, track in zip((6, 7, 8), ("loss", "surprise", "write"), strict=True):
            lines = (line.split() for line in (out / f"{track}.bedgraph").read_text().splitlines())
            values = [float(v) for c, a, _, v in lines if c == chromosome and start <= int(a) < end]
            assert int(row[5]) == len(values)
            assert float(row[column]) == pytest.approx(sum(values) / len(values), rel=1e-4)
    code, _, err = titans("track", *words, "--region", "chr1:111-200", "-o", tmp_path / "part")
    assert code == 0, err
    found = (tmp_path / "part" / "genes.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[0::5][:2] for row in found] == [["left", "10"], ["over", "90"]]
    for text, message in (
        ("chr7\t0\t9\tx\n", "has no region on chr1, chr2; the chromosomes of its regions: chr7"),
        ("chr1\t0\t900\tx\n", "row 1 ends at 900, and chr1 has 300 bases; is it of another assembly?"),
        ("chr1\t0\t9\n", "row 1 has 3 columns; a BED file has chromosome, start and end, and the label"),
        ("", "has no region on chr1, chr2; the chromosomes of its regions: none"),
    ):
        bed.write_text(text)
        code, _, err = titans("track", *words, "-o", tmp_path / "t")
        assert (code, message in err, err.count("\n")) == (2, True, 1), err


def test_faults_of_a_track_are_one_line(language_model, tmp_path, titans):
    genome = tmp_path / "g.fa"
    genome.write_text(">chr1\nACGT\n>chr2\nAC\n")
    wrong = tmp_path / "wrong.fa"
    wrong.write_text(">chr1\nACGT\n>chr2\nAXGQ\n")
    for words, message in (
        ((tmp_path / "none.fa", "-m", language_model), "none.fa' does not exist"),
        ((genome, "-m", language_model, "--region", "chr7"), "has no sequence 'chr7'; its sequences: chr1, chr2"),
        ((wrong, "-m", language_model), "record 2 ('chr2') holds 'Q' at place 4"),
        ((genome, "-m", language_model, "--region", "chr1:1-9"), "region chr1:1-9 goes beyond the end: chr1 has 4"),
        ((genome, "-m", language_model, "--warm-up", 5), "--warm-up reads bases before a region"),
        ((genome,), "Missing option '--model'"),
    ):
        code, _, err = titans("track", *words, *([] if len(words) == 1 else ["-o", tmp_path / "t"]))
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
