"""data.carry: documents in order, and Titans models that go on from one row of a document to the next."""

import pytest
import torch

from graft_base import save_documents
from titanslab import TitansConfig, TitansForCausalLM
from titanslab.data.documents import ALONE, ANEW, GOES_ON
from titanslab.training.carry import TitansCarry
from titanslab.training.recipe import parse_recipe
from titanslab.training.run import train

from .carrying import check_gradients, step
from .test_best import interrupted
from .test_run import metrics, same_weights, weights


def small(variant):
    """A random model with memories that act."""
    torch.manual_seed(0)
    config = TitansConfig(
        variant=variant, vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, segment_len=8, window_size=6, chunk_size=4, num_persistent_tokens=2,
    )  # fmt: skip
    return TitansForCausalLM(config).double().train()


def text(rows, tokens, seed=0):
    return torch.randint(3, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal", "attention"])
def test_rows_go_on_and_begin_anew_each_for_itself(variant):
    """A row's logits are those of its own document, read alone from its start."""
    model = small(variant)
    carry = TitansCarry(model)
    first, second = text(2, 36, seed=5), text(2, 36, seed=6)
    with torch.no_grad():
        step(model, carry, first[:, :12], ANEW, ANEW)
        # the second row begins another document while the first goes on; a task comes between
        step(model, carry, torch.stack((first[0, 12:24], second[1, :12])), GOES_ON, ANEW)
        step(model, carry, text(2, 9, seed=7), ALONE, ALONE)
        found = step(model, carry, torch.stack((first[0, 24:], second[1, 12:24])), GOES_ON, GOES_ON)
        torch.testing.assert_close(found[0], model(first[:1]).logits[0, 24:])
        torch.testing.assert_close(found[1], model(second[1:, :24]).logits[0, 12:])
        found = step(model, carry, second[:, :12], ANEW, ANEW)
        torch.testing.assert_close(found, model(second[:, :12]).logits)


def test_gradients_end_at_the_row_and_reach_the_start_of_a_document():
    model = small("lmm")
    check_gradients(model, TitansCarry(model), text(2, 24), model.model.layers[0].mixer.memory.memory_weights[0])


@pytest.fixture
def carried(table, tmp_path):
    """A recipe that reads five documents in order."""
    documents = str(save_documents(tmp_path / "documents"))
    table["data"] = {"train": documents, "validation": documents, "sequence_length": 24}
    table["data"] |= {"pack_documents": False, "carry": True}
    table["training"] |= {"steps": 8, "save_every": 3, "log_every": 1, "eval_every": 4}
    return table


@pytest.mark.parametrize("variant", ["lmm", "mag"])
def test_a_resumed_run_gives_the_same_losses(carried, tmp_path, monkeypatch, variant):
    carried["model"]["variant"] = variant
    train(parse_recipe(carried), tmp_path / "run")
    interrupted(carried, tmp_path / "again", monkeypatch, 5)
    train(parse_recipe(carried), tmp_path / "again", resume=True)
    assert metrics(tmp_path / "again") == metrics(tmp_path / "run")
    assert same_weights(weights(tmp_path / "again"), weights(tmp_path / "run"))
    carried["data"]["carry"] = False
    train(parse_recipe(carried), tmp_path / "apart")
    assert metrics(tmp_path / "apart") != metrics(tmp_path / "run")


def test_a_checkpoint_of_other_processes_is_refused(carried, tmp_path, monkeypatch):
    interrupted(carried, tmp_path / "run", monkeypatch, 5)
    memories = next((tmp_path / "run").rglob("memories_0.safetensors"))
    memories.with_name("memories_1.safetensors").write_bytes(memories.read_bytes())
    with pytest.raises(ValueError, match=r"memories of 2 processes.* has 1; resume with 2"):
        train(parse_recipe(carried), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("data", "pack_documents", True, "data.pack_documents = true mixes documents, and data.carry = true reads"),
        ("data", "train", None, "data.train is missing"),
        ("training", "gradient_checkpointing", True, "training.gradient_checkpointing = true and data.carry = true"),
        ("training", "compile", True, "training.compile = true and data.carry = true"),
        ("training", "sharding", "fsdp", 'training.sharding = "fsdp" and data.carry = true'),
    ],
)
def test_settings_that_cannot_work_are_refused(carried, section, key, value, message):
    carried[section][key] = value
    if key == "train":
        del carried["data"]["train"]
        carried["data"]["task"] = "kv_recall"
    with pytest.raises(ValueError, match=message):
        parse_recipe(carried)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"preset": "tiny", "variant": "attention", "window_size": "all"}, 'model.window_size = "all" would keep'),
        (
            {"architecture": "mamba2", "num_hidden_layers": 1, "hidden_size": 16, "num_heads": 4, "head_dim": 8},
            "mamba2",
        ),
    ],
)
def test_models_without_a_constant_state_are_refused(carried, tmp_path, model, message):
    carried["model"] = model
    with pytest.raises(ValueError, match=message):
        train(parse_recipe(carried), tmp_path / "run")
    assert not list((tmp_path / "run").glob("[!.]*")), "the folder stays empty"
