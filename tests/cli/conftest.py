"""A small trained run, and the command run in this process."""

import sys

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.cli import main
from titanslab.data import byte_tokenizer
from titanslab.training import sources

RECIPE = """
[model]
preset = "tiny"
variant = "mac"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
segment_len = 16
chunk_size = 8
num_persistent_tokens = 2

[data]
train = "TEXT"
sequence_length = 32

[training]
steps = 3
batch_size = 2
save_every = 2
log_every = 1
warmup_steps = 1
cpu = true
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(sources, "tokens_folder", lambda: tmp_path_factory.getbasetemp() / "tokens")
    monkeypatch.delenv("TITANS_DEBUG", raising=False)


@pytest.fixture
def titans(capsys):
    """Run `titans ...` here; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def fails(titans):
    """Run a command that must fail with one line on stderr and code 2; returns the line."""

    def run(*arguments):
        code, _, err = titans(*arguments)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2, err
        assert len(lines) == 1, err
        assert lines[0].startswith("titans: error: ")
        assert "Traceback" not in err
        return lines[0]

    return run


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"Line {i}: the answer is {i * i % 10}.\n" for i in range(200)))
    return path


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory, text_file):
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE.replace("TEXT", str(text_file)))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, recipe_file):
    """A finished run folder; tests do not change it."""
    from titanslab.training.recipe import load_recipe
    from titanslab.training.run import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train(load_recipe(recipe_file), folder)
    sys.stderr.flush()
    return folder


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """The folder of an untrained model that never ends an answer on its own."""
    folder = tmp_path_factory.mktemp("models") / "talker"
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = TitansForCausalLM(TitansConfig.preset("tiny", vocab_size=len(tokenizer), **sizes))
    with torch.no_grad():
        network.model.embed_tokens.weight[128:].zero_()  # their logits are 0, below the largest of the others
    network.generation_config.do_sample = False
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
