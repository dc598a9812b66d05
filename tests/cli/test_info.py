"""`titans info`: versions, backends and why, the size of a config."""

from pathlib import Path

import pytest
import torch

from titanslab import TitansConfig, TitansForCausalLM


def test_versions_devices_and_backends(titans):
    code, out, err = titans("info")
    assert code == 0, err
    assert f"torch {torch.__version__}" in out or f"torch {torch.__version__.split('+')[0]}" in out
    assert "memory     cpu, reading: chunked (" in out
    assert "memory     cpu, decoding: recurrent (" in out
    assert "parameters" not in out


def test_measure_times_each_way_and_keeps_the_fastest(titans, fails, monkeypatch, tmp_path):
    from titanslab.memory import measure, measured
    from titanslab.memory.chunked import compiled, loop

    monkeypatch.setenv("TITANS_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "FOUND", {})
    monkeypatch.setattr(measure, "TURNS", 1)
    monkeypatch.setattr(measure, "TOKENS", 8)
    monkeypatch.setattr(measure, "supported", lambda *_: (False, "left out: the interpreter is slow"))
    monkeypatch.setattr(compiled, "forward", loop.forward)  # a test compiles nothing
    monkeypatch.setattr(compiled, "backward", loop.backward)
    code, out, err = titans("info", "--preset", "tiny", "--measure")
    assert code == 0, err
    for way in ("reading, torch", "reading, compiled", "reading, cpu", "reading, triton", "decoding, recurrent"):
        assert f"measured   cpu, {way}: " in out
    assert "memory     cpu, reading: chunked (measured here: " in out
    assert list(measured.read()) == list(measured.FOUND) != []
    assert "variant 'attention' has none" in fails("info", "--preset", "tiny", "--variant", "attention", "--measure")


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "attention"])
def test_parameters_are_those_of_the_model(variant, titans):
    model = TitansForCausalLM(TitansConfig.preset("tiny", variant=variant))
    code, out, err = titans("info", "--preset", "tiny", "--variant", variant)
    assert code == 0, err
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"titans {variant}, {count:,} parameters" in out
    state = next(line for line in out.splitlines() if line.startswith("state"))
    assert state.endswith("constant")
    assert ("fast weights" in out) == (variant != "attention")
    assert "FLOPs per token, forward, over 4,096 tokens" in out


def test_a_cache_that_grows_says_so(titans, tmp_path):
    TitansConfig.preset("tiny", variant="attention", window_size=None).save_pretrained(tmp_path)
    out = titans("info", "--config", tmp_path, "--tokens", "1000")[1]
    state = next(line for line in out.splitlines() if line.startswith("state"))
    assert "after 1,000 tokens" in state
    assert state.endswith("at twice that")


def test_models_of_others_are_counted(titans, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path)
    count = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    assert f"llama, {count:,} parameters" in titans("info", "--config", tmp_path)[1]


def test_config_from_a_run_a_file_and_a_recipe(titans, trained, recipe_file):
    lines = [
        [line for line in titans("info", "--config", place)[1].splitlines() if line.startswith(("model", "state"))]
        for place in (trained, trained / "config.json", recipe_file)
    ]
    assert lines[0]
    assert lines[0] == lines[1] == lines[2]


def test_config_from_a_recipe_that_starts_from_a_model(titans, fails, trained, tmp_path):
    from transformers import LlamaConfig

    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((trained / file).read_bytes())  # the weights are not needed
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[model]\npretrained = "{tmp_path}"\nsegment_len = 8\n[data]\ntrain = "x"\ntokenizer = "{tmp_path}"\n'
    )
    changed, whole = (
        {line.split()[0]: line for line in titans("info", "--config", place)[1].splitlines()}
        for place in (recipe, trained)
    )
    assert changed["model"] == whole["model"]
    assert changed["compute"] != whole["compute"]
    LlamaConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    assert "has no field 'segment_len'" in fails("info", "--config", recipe)


def test_what_is_wrong_takes_one_line(fails, tmp_path, text_file):
    assert "preset must be one of" in fails("info", "--preset", "huge")
    assert "--variant needs --preset" in fails("info", "--variant", "mac")
    assert "exclude each other" in fails("info", "--preset", "tiny", "--config", text_file)
    assert "does not exist" in fails("info", "--config", tmp_path / "none")
    assert "is not a model's config" in fails("info", "--config", text_file)
    assert "holds no config.json" in fails("info", "--config", tmp_path)


def lines_of(out):
    return {line.split()[0]: line for line in out.splitlines() if line and line[0] != " "}


def test_a_recipe_says_what_its_training_takes_and_reads_no_data(titans, fails):
    recipe = Path(__file__).parents[2] / "recipes" / "paper" / "340m.toml"
    words = ["info", "--recipe", recipe, "--set", "model.variant=lmm", "--gpus", "8", "--sharding", "fsdp"]
    code, out, err = titans(*words, "--mfu", "0.5")
    assert code == 0, err
    found = lines_of(out)
    assert "28,610 steps of 128 rows of 4,096 tokens: 15 billion tokens; 8 GPUs x 4 passes x 4 rows" in found["run"]
    assert "titans lmm, 342,256,896 parameters" in found["model"]
    assert "with gradient checkpointing, fsdp over 8" in found["memory"]
    # 15e9 tokens of 2.43e9 FLOPs on 8 x 989.4e12 x 0.5
    assert "2.43 GFLOPs per token" in found["training"]
    assert "2.6 hours on 8 H100 at 50 %" in found["time"]
    assert "cannot be shared by 3 devices" in fails(*words[:3], "--gpus", "3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "2"), "need --recipe"),
        (("--recipe", "r.toml", "--preset", "tiny"), "--preset and --recipe exclude each other"),
        (("--recipe", "r.toml"), "recipe 'r.toml' does not exist"),
        (("--recipe", "r.toml", "--mfu", "40"), "--mfu must be above 0 and at most 1"),
        (("--recipe", "r.toml", "--sharding", "zero"), "--sharding is 'zero'; allowed: ddp, fsdp"),
    ],
)
def test_options_of_a_recipe_that_cannot_work(words, message, fails):
    assert message in fails("info", *words)


def test_a_baseline_of_transformers_is_counted_from_its_recipe(titans, tmp_path):
    recipe = tmp_path / "llama.toml"
    recipe.write_text(
        '[model]\narchitecture = "llama"\nvocab_size = 64\nhidden_size = 32\nnum_hidden_layers = 2\n'
        'num_attention_heads = 2\nparameters = 60_000\n[data]\ntrain = "no such file"\npack_documents = false\n'
    )
    found = lines_of(titans("info", "--recipe", recipe)[1])
    assert "llama" in found["model"]
    assert "FLOPs and memory are known for Titans models alone" in found["cost"]
