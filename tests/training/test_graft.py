"""Recipes with [graft]: documents in order with carried memories, resumed runs, LoRA, a trained base, a gate's ramp."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Olmo2Config, Olmo2ForCausalLM

from graft_base import graft_recipe, save_base, save_documents
from grafted import base, grafted, text
from titanslab.data.documents import ALONE, ANEW, GOES_ON
from titanslab.graft import graft_of
from titanslab.runs.loading import load_model, load_model_tokenizer
from titanslab.training.gate_ramp import GateRamp, draw_outputs
from titanslab.training.graft import build_graft
from titanslab.training.graft_carry import GraftCarry
from titanslab.training.graft_sections import GraftRecipe
from titanslab.training.graft_trainer import GraftTrainer
from titanslab.training.recipe import load_recipe, parse_recipe
from titanslab.training.run import train

from .carrying import check_gradients, step
from .test_best import interrupted
from .test_run import metrics, same_weights


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("graft")
    return save_base(place / "base"), save_documents(place / "documents")


@pytest.fixture
def table(folders):
    return graft_recipe(*folders)


@pytest.mark.parametrize(
    ("name", "placement"),
    [("llama", "mag"), ("llama", "mac"), ("gemma3", "mal"), ("lfm2", "mag"), ("qwen3_next", "mag")],
)
def test_rows_go_on_and_begin_anew_each_for_itself(name, placement):
    """A row's logits are those of its own document, read alone from its start."""
    model = grafted(base(name), window_size=6, num_sink_tokens=2, placement=placement)
    first, second = text(2, 36, seed=5), text(2, 36, seed=6)
    carry = GraftCarry(model)
    with torch.no_grad():
        step(model, carry, first[:, :12], ANEW, ANEW)
        # the second row begins another document while the first goes on; a task comes between
        step(model, carry, torch.stack((first[0, 12:24], second[1, :12])), GOES_ON, ANEW)
        step(model, carry, text(2, 9, seed=7), ALONE, ALONE)
        found = step(model, carry, torch.stack((first[0, 24:], second[1, 12:24])), GOES_ON, GOES_ON)
        torch.testing.assert_close(found[0], model(first[:1]).logits[0, 24:], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found[1], model(second[1:, :24]).logits[0, 12:], atol=2e-5, rtol=1e-4)


def test_memories_alone_go_on_without_a_window():
    model, ids = grafted(base()), text(1, 24)
    carry = GraftCarry(model)
    with torch.no_grad():
        fresh = step(model, carry, ids[:, 12:], ANEW)
        step(model, carry, ids[:, :12], ANEW)
        found = step(model, carry, ids[:, 12:], GOES_ON)
        assert (found - fresh).abs().max() > 1e-3
        with model.graft.window_alone():
            step(model, carry, ids[:, :12], ANEW)
            torch.testing.assert_close(step(model, carry, ids[:, 12:], GOES_ON), model(ids[:, 12:]).logits)


@pytest.mark.parametrize("name", ["llama", "lfm2", "qwen3_next"])
def test_gradients_end_at_the_piece_and_reach_the_start_of_a_row_that_begins(name):
    model = grafted(base(name), window_size=6)
    check_gradients(model, GraftCarry(model), text(2, 24), model.graft.memories[0].memory_weights[0])


@pytest.mark.parametrize("changes", [{}, {"window_size": "all", "lora": 2}], ids=["window", "memories alone, LoRA"])
def test_a_resumed_run_gives_the_same_losses(table, tmp_path, monkeypatch, changes):
    table["graft"] |= changes
    table["data"]["validation"] = table["data"]["train"]
    table["training"] |= {"eval_every": 4, "accumulation": 2, "steps": 5}
    train(parse_recipe(table), tmp_path / "run")
    interrupted(table, tmp_path / "again", monkeypatch, 4)
    shutil.copytree(tmp_path / "again", tmp_path / "other")
    train(parse_recipe(table), tmp_path / "again", resume=True)
    assert metrics(tmp_path / "again") == metrics(tmp_path / "run")
    last = "checkpoints/checkpoint-5/trained.safetensors"
    assert same_weights(load_file(tmp_path / "run" / last), load_file(tmp_path / "again" / last))

    if not changes:
        next((tmp_path / "other").rglob("memories_0.safetensors")).unlink()
        with monkeypatch.context() as patch:
            patch.setattr("titanslab.runs.checkpoints.problem", lambda *_, **__: "")
            train(parse_recipe(table), tmp_path / "other", resume=True)
        assert metrics(tmp_path / "other") != metrics(tmp_path / "run"), "without the states it is another run"

    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "recipe.toml"} <= files
    assert not files & {"config.json", "model.safetensors"}, "no weight of the base"
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (recipe.kind, recipe.model.train) == ("graft", "lora" if changes else "memory")
    model = load_model(tmp_path / "run")
    assert graft_of(model).window.size == (None if changes else 16)
    assert load_model_tokenizer(tmp_path / "run").decode([72]) == "H"


def test_lora_in_a_base_that_peft_does_not_know(tmp_path):
    """Without names, LoRA stands at each linear map of attention, and at no other."""
    config = Olmo2Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    Olmo2ForCausalLM(config).save_pretrained(tmp_path)
    model = build_graft(GraftRecipe(str(tmp_path), "none", 4, lora=2))
    found = [name.partition("model.layers.")[2] for name, p in model.named_parameters() if p.requires_grad]
    linear = [f"{i}.self_attn.{n}_proj" for i in range(2) for n in "qkvo"]
    assert sorted(found) == sorted(f"{name}.lora_{m}.default.weight" for name in linear for m in "AB")


def test_a_base_that_was_trained_too_is_saved_beside_the_memories(table, tmp_path, folders):
    table["graft"] |= {"train": "all", "gate_ramp": 2}
    table["training"]["steps"] = 3
    table["training"]["save_every"] = 9
    table["data"] |= {"task": "kv_recall", "task_share": 0.25}
    train(parse_recipe(table), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    model, plain = load_model(tmp_path / "moved"), load_model(folders[0])
    saved = load_file(tmp_path / "moved" / "checkpoints" / "checkpoint-3" / "trained.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(name), saved[name])
    assert not torch.equal(model.get_parameter(name), plain.get_parameter(name))
    memory = "model.layers.0.self_attn.titans_memory.o_proj.weight"
    assert torch.equal(model.get_parameter(memory), saved[memory])


@pytest.mark.parametrize("placement", ["mag", "mac"])
def test_the_ramp_scales_the_outputs_of_the_memories(placement):
    model, ids = grafted(base(), trained=False, placement=placement), text()
    plain = model(ids).logits
    draw_outputs(model)
    full = model(ids).logits
    ramp = GateRamp(model, 4)
    state = type("State", (), {"global_step": 0})
    moved = []
    for state.global_step in (0, 1, 3, 9):
        ramp.on_step_begin(None, state, None)
        moved.append((model(ids).logits - plain).abs().max().item())
    assert 0 < moved[0] < moved[1] < moved[2] == moved[3]
    assert torch.equal(model(ids).logits, full)


def test_gates_and_the_start_of_the_memories_do_not_decay(table):
    recipe = parse_recipe(table)
    model = build_graft(recipe.model)
    names = GraftTrainer.get_decay_parameter_names(object.__new__(GraftTrainer), model)
    own = {name.partition("titans_memory.")[2] for name in names if "titans_memory" in name}
    assert own == {f"{name}_proj.weight" for name in "qkvgo"}


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("graft", {"base": ""}, "graft.base is missing"),
        ("graft", {"train": "lora"}, 'graft.train = "lora" needs graft.lora, the rank'),
        ("graft", {"lora": 4, "train": "all"}, "graft.lora = 4 has no use"),
        ("graft", {"lora_alpha": 4}, "graft.lora_alpha needs graft.lora"),
        ("graft", {"layers": "some"}, "graft.layers must be one of all, third"),
        ("graft", {"window_size": "half"}, "graft.window_size must be an integer"),
        ("graft", {"num_headz": 2}, r"unknown key 'num_headz' in \[graft\]; did you mean 'num_heads'"),
        ("graft", {"depth": 0}, "graft.depth must be an integer of at least 1"),
        ("graft", {"carry": False, "pieces": 3}, "graft.pieces needs graft.carry"),
        ("graft", {"gate_ramp": 9}, "graft.gate_ramp = 9 does not end within training.steps = 8"),
        ("data", {"pack_documents": True}, "data.pack_documents = true mixes documents"),
        ("data", {"train": None, "task": "kv_recall"}, "data.train is missing: give documents"),
        ("training", {"gradient_checkpointing": True}, "keeps no cache, which graft.carry = true needs"),
        ("training", {"eval_every": 2}, "training.eval_every needs data.validation"),
    ],
)
def test_wrong_recipes(table, section, values, words):
    table[section] |= values
    with pytest.raises(ValueError, match=words):
        parse_recipe(table)


def test_a_graft_has_no_section_for_a_model(table):
    with pytest.raises(ValueError, match=r"remove \[model\]"):
        parse_recipe(table | {"model": {"preset": "tiny"}})


def test_a_graft_is_no_base(table, tmp_path):
    table["training"]["steps"] = 1
    train(parse_recipe(table), tmp_path / "run")
    table["graft"]["base"] = str(tmp_path / "run")
    with pytest.raises(ValueError, match="has a graft already; give its base"):
        train(parse_recipe(table), tmp_path / "next")
    assert np.isfinite(metrics(tmp_path / "run")[0]["loss"])
