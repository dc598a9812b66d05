"""`titans info`: versions, backends and why, the size of a config."""

import pytest
import torch

from titanslab.models import TitansConfig, TitansForCausalLM


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
