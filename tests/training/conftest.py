"""A recipe so small that a step takes milliseconds."""

import pytest

from titanslab.training import sources
from titanslab.training.recipe import parse_recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(sources, "tokens_folder", lambda: tmp_path_factory.getbasetemp() / "tokens")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"Line {i}: the answer to {i % 7} is {i * i % 10}.\n" for i in range(400)))
    return path


@pytest.fixture
def table(text_file):
    """A recipe as nested values; change it freely."""
    return {
        "model": {
            "preset": "tiny",
            "variant": "mac",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "segment_len": 16,
            "chunk_size": 8,
            "num_persistent_tokens": 2,
        },
        "data": {"train": str(text_file), "sequence_length": 32, "text_documents": "line"},
        "training": {
            "steps": 12,
            "batch_size": 2,
            "accumulation": 2,
            "warmup_steps": 3,
            "save_every": 5,
            "log_every": 2,
            "learning_rate": 3e-3,
            "cpu": True,
        },
    }


@pytest.fixture
def recipe(table):
    return parse_recipe(table)
