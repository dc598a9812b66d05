"""Files of weights: what their index and headers say is checked before a value is used."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.runs.loading import load_config, load_model
from titanslab.runs.weights import INDEX, SINGLE, difference, weight_files

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    TitansForCausalLM(TitansConfig.preset("tiny", variant="lmm", **sizes)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def save(folder, **changes):
    tensors = load_file(folder / SINGLE)
    save_file({name: changes.get(name.replace(".", "_"), value) for name, value in tensors.items()}, folder / SINGLE)


def change(folder, value):
    save(folder, **{NAME.replace(".", "_"): value})


def sharded(folder, target):
    """The model of `folder` with its only shard under the name that an index gives."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).rename(folder / "shard.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, target)}
    (folder / INDEX).write_text(json.dumps(index))


def test_a_sharded_model_is_loaded_as_before(folder):
    before = load_model(folder).state_dict()
    sharded(folder, "shard.safetensors")
    assert weight_files(folder) == [folder / "shard.safetensors"]
    after = load_model(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("../other.safetensors", "not a .safetensors file in its own folder"),
        ("/etc/passwd", "not a .safetensors file in its own folder"),
        ("shard.bin", "not a .safetensors file in its own folder"),
        ("..", "not a .safetensors file in its own folder"),
        ("a\0.safetensors", "not a .safetensors file in its own folder"),
        ("missing.safetensors", "which is missing"),
        ("", "weight_map"),
        (5, "weight_map"),
    ],
)
def test_an_index_stays_in_its_folder(folder, target, words):
    save_file(load_file(folder / SINGLE), folder.parent / "other.safetensors")  # whole, and outside
    sharded(folder, target)
    with pytest.raises(ValueError, match="index") as caught:
        load_model(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint32, torch.float16, torch.bfloat16])
def test_a_tensor_of_another_dtype_is_named(folder, dtype):
    value = load_file(folder / SINGLE)[NAME]
    change(folder, value.view(dtype) if dtype.itemsize == 4 else value.to(dtype))
    with pytest.raises(ValueError, match=rf"tensor '{NAME}' in .* has dtype \w+, and the model's config allows F32"):
        load_model(folder)


def test_a_model_in_bfloat16_keeps_its_float32_parameters(folder):
    model = load_model(folder).to(torch.bfloat16)
    model.save_pretrained(folder)
    assert load_model(folder).dtype == torch.bfloat16


def test_a_tensor_of_another_shape_is_named(folder):
    change(folder, torch.zeros(3, 16))
    with pytest.raises(ValueError, match=rf"config.json says; {NAME} is \[3, 16\], not \[24, 16\]"):
        load_model(folder)


def test_a_config_of_a_far_larger_model_is_refused_before_one_is_made(folder):
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 9_999}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"describes at least .* parameters, and its files hold"):
        load_model(folder)


def test_a_pickle_in_the_place_of_weights_is_not_read(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"holds no .safetensors file of a model; other formats are not read"):
        load_model(folder)
    (folder / SINGLE).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value", ["[]", "{", '{"model_type": 5}', "[" * 100_000, '{"model_type": "titans", "dtype": 1}']
)
def test_a_broken_config_is_one_line(folder, value):
    (folder / "config.json").write_text(value)
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        load_config(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_strange_tensors_are_differences(folder):
    wanted = load_model(folder).state_dict()
    tensors = load_file(folder / SINGLE)
    assert difference([folder / SINGLE], wanted) == ""
    save_file({name: value for name, value in tensors.items() if name != NAME}, folder / SINGLE)
    assert "is missing" in difference([folder / SINGLE], wanted)
    save_file(tensors | {"other": torch.zeros(1)}, folder / SINGLE)
    assert "'other'" in difference([folder / SINGLE], wanted)
    assert difference([folder / SINGLE], wanted, names_too=False) == ""


@pytest.mark.parametrize(
    "change", [{"bos_token_id": "x"}, {"temperature": -1.0}, {"eos_token_id": [1.5]}, {"top_p": 2.0}]
)
def test_a_generation_config_of_wrong_types_is_named(folder, change):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"generation_config\.json: {next(iter(change))}.*; correct it, or delete it"):
        load_model(folder)
