"""`titans graft`: from a base and documents to a memory, and the verbs on its folder."""

import json

import pytest

from graft_base import save_base, save_documents

SETS = ("graft.layers=all", "graft.num_heads=2", "graft.head_dim=8", "graft.chunk_size=8", "graft.control_tokens=100",
        "data.sequence_length=24", "training.warmup_steps=1", "training.cpu=true")  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("graft")
    return save_base(place / "base"), save_documents(place / "documents")


def test_a_memory_is_trained_measured_and_opened(titans, fails, folders, tmp_path):
    base, documents = folders
    memory = tmp_path / "memory"
    words = [word for text in SETS for word in ("--set", text)]
    code, out, err = titans(
        "graft", base, "--train", documents, "--output", memory, "--window", 16, "--lora", 2, "--steps", 2, *words
    )
    assert code == 0, err
    assert "loss in nats per token" in out
    assert "The memory is " in out
    assert "measured on documents of the training" in err
    content = json.loads((memory / "controls.json").read_text())
    assert content["window_size"] == 16
    assert len(content["positions"]) == 5
    assert (memory / "controls.png").exists()

    code, out, err = titans("generate", "--model", memory, "--prompt", "abc", "--max-new-tokens", 3, "--device", "cpu")
    assert code == 0, err
    code, out, err = titans("evaluate", "graft", "-m", memory, "-d", documents, "--max-tokens", 60, "--device", "cpu")
    assert code == 0, err
    assert (memory / "evaluation" / "controls.json").exists()
    assert "has no graft" in fails("evaluate", "graft", "-m", base, "-d", documents)


def test_wrong_words(fails, folders, tmp_path):
    base, documents = folders
    assert "Missing option '--output'" in fails("graft", base, "--train", documents)
    assert "'nowhere' does not exist" in fails("graft", "nowhere", "--train", documents, "--output", tmp_path / "m")
    wrong = ("--set", "graft.layers=some")
    assert "graft.layers must be one of" in fails("graft", base, "-t", documents, "-o", tmp_path / "m", *wrong)
