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


@pytest.mark.parametrize("variant", ["lmm", "mal", "mag", "mac", "attention"])
def test_parameters_are_those_of_the_model(variant, titans):
    model = TitansForCausalLM(TitansConfig.preset("tiny", variant=variant))
    code, out, err = titans("info", "--preset", "tiny", "--variant", variant)
    assert code == 0, err
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"titans {variant}, {count:,} parameters" in out


def test_config_from_a_run_a_file_and_a_recipe(titans, trained, recipe_file):
    lines = [
        [line for line in titans("info", "--config", place)[1].splitlines() if line.startswith("model")]
        for place in (trained, trained / "config.json", recipe_file)
    ]
    assert lines[0]
    assert lines[0] == lines[1] == lines[2]


def test_what_is_wrong_takes_one_line(fails, tmp_path, text_file):
    assert "preset must be one of" in fails("info", "--preset", "huge")
    assert "--variant needs --preset" in fails("info", "--variant", "mac")
    assert "exclude each other" in fails("info", "--preset", "tiny", "--config", text_file)
    assert "does not exist" in fails("info", "--config", tmp_path / "none")
    assert "is not a model's config" in fails("info", "--config", text_file)
    assert "holds no config.json" in fails("info", "--config", tmp_path)
