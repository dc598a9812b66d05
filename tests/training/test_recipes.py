"""The recipes that come with the repository: whole, and each table's rows of one size on the same data."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from titanslab.data import byte_tokenizer
from titanslab.experiments.arguments import EXACT_ROWS, LESSON_ROWS
from titanslab.training.model import build_model
from titanslab.training.recipe import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes"
ROWS = {"lmm", "mal", "mag", "mac", "window", "attention", "gated_deltanet"}


def size(recipe):
    recipe.model.options["vocab_size"] = 2048
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(recipe, byte_tokenizer()).parameters())


@pytest.mark.parametrize("task", ["niah", "babilong"])
def test_rows_of_a_table_differ_in_the_model_alone_and_are_of_one_size(task):
    recipes = {path.stem: load_recipe(path) for path in (FOLDER / task).glob("*.toml")}
    assert recipes.keys() == ROWS
    first = recipes["mac"]
    assert all(recipe.data == first.data and recipe.training == first.training for recipe in recipes.values())
    assert first.data.task == task
    options = first.data.task_options
    assert options["same_length_rows"] == first.training.batch_size
    assert 0.3 <= options["curriculum_rows"] / (first.training.steps * first.training.batch_size) <= 0.9
    sizes = {name: size(recipe) for name, recipe in recipes.items()}
    assert max(sizes.values()) <= 1.05 * min(sizes.values()), sizes
    assert min(sizes.values()) >= 1_000_000


@pytest.mark.parametrize("task", ["niah", "babilong"])
def test_the_second_stage_is_of_the_same_task_at_a_higher_price(task):
    late, first = load_recipe(FOLDER / "late" / f"{task}.toml"), load_recipe(FOLDER / task / "mac.toml")
    assert late.model.options["memory_write_cost"] > first.model.options["memory_write_cost"]
    assert late.model.options.get("memory_forgetting", True) is (task == "niah")
    assert late.data.sequence_length == first.data.sequence_length
    assert late.data.task_options["min_length"] > first.data.task_options["min_length"]
    assert late.data.task_options["same_length_rows"] == late.training.batch_size
    assert late.training.learning_rate < first.training.learning_rate


def test_the_exact_memory_sees_the_same_rows():
    exact, first = load_recipe(FOLDER / "exact" / "niah.toml"), load_recipe(FOLDER / "niah" / "mac.toml")
    seen = [recipe.training.steps * recipe.training.batch_size for recipe in (exact, first)]
    assert seen[0] == seen[1]
    batch = exact.data.task_options.pop("same_length_rows"), first.data.task_options.pop("same_length_rows")
    assert batch == (exact.training.batch_size, first.training.batch_size)
    assert exact.data == first.data
    assert size(exact) < size(first)


@pytest.mark.parametrize(("recipe", "rows"), [("exact/niah", EXACT_ROWS), ("lessons/1_steps", LESSON_ROWS)])
def test_rows_in_the_macs_place_are_of_its_size(recipe, rows):
    sizes = {row: size(load_recipe(FOLDER / f"{recipe}.toml", changes)) for row, changes in rows.items()}
    baselines = {"window", "attention", "window_recall", "attention_recall"}
    assert sizes.keys() == {"mac", "lmm", "mal", "mag", *baselines}
    assert max(sizes.values()) <= 1.02 * min(sizes.values()), sizes


def test_each_lesson_begins_where_the_one_before_ended():
    lessons = [(path.stem, load_recipe(path)) for path in sorted((FOLDER / "lessons").glob("*.toml"))]
    assert [name[0] for name, _ in lessons] == ["1", "2", "3", "4", "5"]
    assert size(lessons[0][1]) < 1_500_000
    for (before, _), (_, lesson) in pairwise(lessons):
        assert lesson.model.pretrained == f"runs/lessons/{before}"
    prices = []
    for _, lesson in lessons:
        options = lesson.data.task_options
        assert options["same_length_rows"] == lesson.training.batch_size
        assert options["hints"] is True
        prices.append(lesson.model.options.get("memory_write_cost", 0.0))
    assert set(lessons[-1][1].data.task_options["tasks"]) == {"qa1", "qa2", "qa3", "qa4", "qa5"}
    assert prices == sorted(prices)
    assert prices[0] == 0 < prices[-1]


def test_first_line_is_the_command():
    for path in FOLDER.glob("*/*.toml"):
        assert path.read_text().startswith(f"# titans train recipes/{path.parent.name}/{path.name} --output ")


def test_a_window_of_all_tokens():
    recipe = load_recipe(FOLDER / "niah" / "attention.toml")
    with torch.device("meta"):
        assert build_model(recipe, byte_tokenizer()).config.window_size is None
    assert load_recipe(FOLDER / "niah" / "window.toml").model.options["window_size"] == 64
