"""Recipes: typed, checked, written back as they were read."""

import re
import tomllib
from pathlib import Path

import pytest

from titanslab.training.recipe import load_recipe, parse_recipe

MINIMAL = {"data": {"train": "a.txt"}}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults_are_filled_in_and_come_back_from_toml(tmp_path):
    recipe = parse_recipe(MINIMAL)
    assert (recipe.model.preset, recipe.model.variant) == ("tiny", "mac")
    again = load_recipe(write(tmp_path, recipe.to_toml()))
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()


def test_odd_values_survive_writing(tmp_path):
    table = {
        "model": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "data": {"train": ['a "b".txt', "tab\there\\", "é\x7f.txt"], "task_options": {"x": [1, {"y": True}]}},
        "training": {"learning_rate": 1e-7, "report_to": ["tensorboard"]},
    }
    table["data"] |= {"task": "niah", "task_share": 0.5}
    recipe = parse_recipe(table)
    assert load_recipe(write(tmp_path, recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("training.learning_rate=1e-4", "training", "learning_rate", 1e-4),
        ("training.learning_rate=1", "training", "learning_rate", 1.0),
        ("training.compile=true", "training", "compile", True),
        ("training.report_to=['a', 'b']", "training", "report_to", ["a", "b"]),
        ("data.train=other file.txt", "data", "train", "other file.txt"),
        ("data.train=['a.txt','b.txt']", "data", "train", ["a.txt", "b.txt"]),
        ("data.text_column=7", "data", "text_column", "7"),
        ('data.tokenizer="byte"', "data", "tokenizer", "byte"),
        ("data.task_options={}", "data", "task_options", {}),
    ],
)
def test_assignments_are_read_as_toml_or_text(assignment, section, key, value):
    assert getattr(getattr(parse_recipe(MINIMAL, [assignment]), section), key) == value


def test_keys_of_a_table_can_be_assigned_one_by_one():
    table = {"data": {"task": "niah", "task_options": {"variant": "single_2", "min_length": 64}}}
    names = ["data.task_options.haystack=a b.txt", "data.task_options.min_length=96", "data.task_options.a.b=[1]"]
    options = parse_recipe(table, names).data.task_options
    assert options == {"variant": "single_2", "min_length": 96, "haystack": "a b.txt", "a": {"b": [1]}}
    assert table["data"]["task_options"] == {"variant": "single_2", "min_length": 64}  # the caller's is untouched
    with pytest.raises(ValueError, match=r"data\.task is 'niah', not a table that could hold a key"):
        parse_recipe(table, ["data.task.haystack=x"])


def test_model_fields_can_be_assigned_and_the_last_one_wins():
    recipe = parse_recipe(MINIMAL, ["model.window_size=32", "model.window_size=64", "model.variant=mag"])
    assert recipe.model.options == {"window_size": 64}
    assert recipe.model.variant == "mag"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"dta": {}}, r"unknown section \[dta\]; allowed: .*; did you mean 'data'\?"),
        ({"data": {"trian": "x"}}, r"unknown key 'trian' in \[data\]; did you mean 'train'\?"),
        ({"training": {"learning_rat": 1}}, r"'learning_rat' in \[training\]; did you mean 'learning_rate'"),
        ({"model": {"hiden_size": 1}}, r"'hiden_size' in \[model\]; did you mean 'hidden_size'\?"),
        ({"training": {"steps": "ten"}}, r"training\.steps must be a whole number, got str 'ten'"),
        ({"training": {"steps": True}}, r"training\.steps must be a whole number, got bool True"),
        ({"training": {"steps": 2.5}}, r"training\.steps must be a whole number, got float 2\.5"),
        ({"training": {"report_to": [1]}}, r"training\.report_to\[0\] must be text, got int 1"),
        ({"data": {"train": 3}}, r"data\.train must be text or a list, got int 3"),
        ({"training": 5}, r"training must be a section"),
        ({"training": {"steps": 0}}, r"training\.steps must be a whole number of at least 1, got int 0"),
        ({"training": {"learning_rate": 0.0}}, r"training\.learning_rate must be a number above 0\.0, got float 0\.0"),
        ({"training": {"beta1": 1.0}}, r"training\.beta1 must be a number below 1\.0"),
        ({"training": {"schedule": "cosin"}}, r"; allowed: cosine, linear, constant; did you mean 'cosine'\?"),
        ({"training": {"precision": "fp8"}}, r"allowed: fp32, bf16"),
        ({"training": {"eval_every": 5}}, r"training\.eval_every needs data\.validation"),
        ({"data": {}}, r"data\.train is missing"),
        ({"data": {"train": "x"}, "model": {"template": "no"}}, r"model\.template must hold \{question\} once"),
        (
            {"data": {"train": "x"}, "model": {"max_new_tokens": 0}},
            r"model\.max_new_tokens must be a whole number of at least 1",
        ),
        (
            {"data": {"train": "x"}, "model": {"temperature": -1.0}},
            r"model\.temperature must be a number of at least 0",
        ),
        ({"data": {"train": "a", "sequence_length": 1}}, r"data\.sequence_length must be a whole number of at least 2"),
        ({"data": {"train": "a", "tokenizer": ""}}, r"data\.tokenizer is empty"),
        ({"data": {"train": "a", "task_share": 0.5}}, r"need data\.task"),
        ({"data": {"train": "a", "task": "recall"}}, r"task_share is 1\.0"),
        ({"data": {"task": "recall", "streaming": True}}, r"cannot be combined with data\.task"),
        ({"model": {"pretrained": "x", "preset": "tiny"}}, r"cannot take effect together with"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(table, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_recipe(MINIMAL | table, origin="my.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("training.steps=2147483648", "training.steps must be a whole number of at most 2147483647"),
        ("training.batch_size=9223372036854775808", "training.batch_size must be a whole number of at most"),
        ("training.seed=4294967296", "training.seed must be a whole number of at most 4294967295"),
        ("training.seed=" + "9" * 30, "training.seed: value must fit in 64 bits"),
        ("training.weight_decay=1e308", "training.weight_decay must be a number of at most 1000"),
        ("training.learning_rate=nan", "training.learning_rate: value must be a finite number, got nan"),
        ("training.gradient_clip=inf", "value must be a finite number, got inf"),
        ("data.task_share=0.0", "data.task_share must be a number above 0"),
        ("data.sequence_length=2000000000", "tokens, and a forward pass takes"),
        ("training.steps=" + "[" * 5000, "tables and lists inside each other"),
        ("data.task_options=1979-05-27", "must be text in quotes, got the date"),
    ],
)
def test_impossible_numbers_name_their_key(assignment, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        parse_recipe(MINIMAL, [assignment])
    assert len(str(caught.value)) < 300


def test_a_decay_that_changes_the_sign_of_weights_is_refused():
    with pytest.raises(ValueError, match=r"training\.weight_decay = 200\.0 times training\.learning_rate = 0\.01"):
        parse_recipe(MINIMAL, ["training.weight_decay=200", "training.learning_rate=0.01"])


@pytest.mark.parametrize("assignment", ["steps=3", "training.steps", "=3", "x.y=1", "training.=1"])
def test_assignments_of_another_form_are_named(assignment):
    with pytest.raises(ValueError, match="--set"):
        parse_recipe(MINIMAL, [assignment])


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'none\.toml' does not exist"):
        load_recipe("none.toml")
    with pytest.raises(ValueError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(ValueError, match="is not valid TOML: "):
        load_recipe(write(tmp_path, "[model\npreset = "))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "binary.toml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_repository_is_valid(path):
    recipe = load_recipe(path)
    written = tomllib.loads(recipe.to_toml())["training"]
    length = "steps" if recipe.training.epochs is None else "epochs"
    assert written[length] == getattr(recipe.training, length)
