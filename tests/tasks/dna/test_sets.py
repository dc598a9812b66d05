"""Sets by name, their splits, scores by scikit-learn, and published figures."""

import numpy as np
import pytest

from titanslab.tasks.dna import sets
from titanslab.tasks.dna.published import COLUMNS, PROTOCOLS, published_rows
from titanslab.tasks.dna.scores import classification_scores, mean_and_spread
from titanslab.tasks.dna.sets import SETS, open_splits, read_set


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("ACGT"), 20)) + f"\t{i % 2}" for i in range(100)]
    path = tmp_path / "all.tsv"
    path.write_text("seq\tlabel\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "HOME", str(tmp_path / "home"))
    for part, count in (("train", 20), ("test", 5)):
        for label in ("positive", "negative"):
            folder = tmp_path / "home" / "human_nontata_promoters" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.txt").write_text("ACGT" * (number + 1))
    return tmp_path / "home"


def test_a_set_by_name_keeps_its_test_part(home):
    train, test = read_set("human_nontata_promoters")
    assert (len(train), len(test)) == (40, 10)
    splits = open_splits("human_nontata_promoters", seed=3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 4, 10)
    assert splits.labels == ["negative", "positive"]
    assert splits.longest == 80
    assert list(open_splits(home / "human_nontata_promoters", seed=3).train.names) == list(splits.train.names)
    with pytest.raises(ValueError, match="is a set with a test part; leave out test and test_share"):
        open_splits("human_nontata_promoters", test_share=0.1)
    with pytest.raises(FileNotFoundError, match=r"set 'human_ocr_ensembl' is not in .*home; download it: pip install"):
        read_set("human_ocr_ensembl")


def test_a_test_part_of_one_file_is_the_same_for_every_seed(table):
    one, two = (open_splits(table, seed=seed, test_share=0.2) for seed in (0, 1))
    assert (len(one.train), len(one.validation), len(one.test)) == (72, 8, 20)
    assert list(one.test.names) == list(two.test.names)
    assert set(one.validation.names) != set(two.validation.names)
    names = [*one.train.names, *one.validation.names, *one.test.names]
    assert len(set(names)) == 100
    assert list(open_splits(table, seed=0, test_share=0.2).train.names) == list(one.train.names)
    assert "drawn once for all seeds" in one.about


def test_faults_are_named(table, tmp_path):
    assert len(open_splits(table).test) == 0
    with pytest.raises(ValueError, match="validation_share must be at least 0 and below 1, got 1"):
        open_splits(table, test_share=0.1, validation_share=1)
    with pytest.raises(ValueError, match="the validation part has no sequence"):
        open_splits(table, test_share=0.1, validation_share=0.001)
    other = tmp_path / "other.tsv"
    other.write_text("seq\tlabel\nACGTACGT\t7\n")
    with pytest.raises(ValueError, match="the test part has the label '7', which the training part lacks"):
        open_splits(table, other)
    with pytest.raises(FileNotFoundError, match="set 'human_nothing' is neither a folder nor one of human_enh"):
        read_set("human_nothing")


def test_scores_against_their_definitions():
    targets = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    right = np.array([0.1, 0.4, 0.6, 0.9, 0.8, 0.3, 0.7, 0.2])
    scores = classification_scores(targets, np.stack([1 - right, right], 1))
    assert scores["accuracy"] == 6 / 8
    assert scores["mcc"] == pytest.approx((3 * 3 - 1 * 1) / 16)
    pairs = [(a > b) + 0.5 * (a == b) for a in right[targets == 1] for b in right[targets == 0]]
    assert scores["roc_auc"] == pytest.approx(np.mean(pairs))
    alone = classification_scores(np.zeros(3, int), np.full((3, 2), 0.5))
    assert alone == {"accuracy": 1.0, "mcc": None, "roc_auc": None}
    three = classification_scores(np.array([0, 1, 2]), np.eye(3))
    assert three == {"accuracy": 1.0, "mcc": 1.0, "roc_auc": 1.0}
    with pytest.raises(ValueError, match="not finite; did the training diverge"):
        classification_scores(np.array([0]), np.array([[np.nan, 0.5]]))
    summary = mean_and_spread([{"accuracy": 0.7, "roc_auc": None}, {"accuracy": 0.8, "roc_auc": 0.9}])
    assert summary == {"accuracy": {"mean": 0.75, "spread": pytest.approx(0.05 * 2**0.5), "runs": 2}}


def test_published_figures_are_of_the_sets():
    assert set(COLUMNS) == set(SETS)
    assert all(len(row) == len(COLUMNS) for protocol in PROTOCOLS.values() for row in protocol.rows.values())
    rows = published_rows("human_enhancers_cohn")
    assert {"protocol": "caduceus", "model": "Caduceus-Ph", "accuracy": 74.7} in rows
    assert {"protocol": "hyenadna", "model": "Neural memory (Titans)", "accuracy": 75.2} in rows
    mamba = [r["protocol"] for r in published_rows("human_ocr_ensembl") if r["model"] == "Mamba"]
    assert mamba == ["caduceus"]
    with pytest.raises(ValueError, match="set is 'x'; published figures are of"):
        published_rows("x")
