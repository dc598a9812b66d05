"""The studies of the package: whole recipes, rows of one size on the same data; and errors of a study file."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from titanslab.data import byte_tokenizer
from titanslab.experiments.job import has_memory
from titanslab.experiments.plan import listing, parameters
from titanslab.experiments.study import FIRST, merged, split_change
from titanslab.experiments.study_file import load_study
from titanslab.training.model import build_model

ROWS = {"lmm", "mal", "mag", "mac", "window", "attention", "gated_deltanet"}
MEMORIES = {"lmm", "mal", "mag", "mac"}


def first(task, row, set_name="main"):
    return load_study(task).recipes(set_name, row, [FIRST])[0]


def late(task, row="mac"):
    study = load_study(task)
    stages = study.sets["main"].stages_of(row, "late")
    return study.recipes("main", row, stages, [f"late:model.pretrained=runs/{row}"])[-1]


@pytest.mark.parametrize("task", ["niah", "babilong"])
def test_rows_of_a_table_differ_in_the_model_alone_and_are_of_one_size(task):
    study = load_study(task)
    recipes = {row: first(task, row) for row in study.sets["main"].rows}
    assert recipes.keys() == ROWS
    assert {row for row, recipe in recipes.items() if has_memory(recipe)} == MEMORIES
    assert [row for row, settings in study.sets["main"].rows.items() if not settings.far] == ["attention"]
    mac = recipes["mac"]
    assert all(recipe.data == mac.data and recipe.training == mac.training for recipe in recipes.values())
    assert mac.data.task == study.ask.task == task
    options = mac.data.task_options
    assert options["same_length_rows"] == mac.training.batch_size
    assert 0.3 <= options["curriculum_rows"] / (mac.training.steps * mac.training.batch_size) <= 0.9
    sizes = {name: parameters(recipe, 2048) for name, recipe in recipes.items()}
    assert max(sizes.values()) <= 1.05 * min(sizes.values()), sizes
    assert min(sizes.values()) >= 1_000_000


@pytest.mark.parametrize("task", ["niah", "babilong"])
def test_the_late_stage_is_of_the_same_task_at_a_higher_price(task):
    second, mac = late(task), first(task, "mac")
    assert second.model.options["memory_write_cost"] > mac.model.options["memory_write_cost"]
    assert second.model.options.get("memory_forgetting", True) is (task == "niah")
    assert (second.model.pretrained, second.model.variant) == ("runs/mac", "")
    assert second.data.sequence_length == mac.data.sequence_length
    assert second.data.task_options["min_length"] > mac.data.task_options["min_length"]
    assert second.data.task_options["same_length_rows"] == second.training.batch_size
    assert second.training.learning_rate < mac.training.learning_rate
    part = load_study(task).sets["main"]
    assert {row for row in part.rows if part.stages_of(row, "late") == [FIRST, "late"]} == MEMORIES
    assert all(part.stages_of(row) == [FIRST] for row in part.rows)


def test_the_exact_memory_sees_the_same_rows():
    exact, mac = first("niah", "mac", "exact"), first("niah", "mac")
    seen = [recipe.training.steps * recipe.training.batch_size for recipe in (exact, mac)]
    assert seen[0] == seen[1]
    batch = exact.data.task_options.pop("same_length_rows"), mac.data.task_options.pop("same_length_rows")
    assert batch == (exact.training.batch_size, mac.training.batch_size)
    assert exact.data == mac.data
    assert parameters(exact, 2048) < parameters(mac, 2048)


@pytest.mark.parametrize(("task", "name"), [("niah", "exact"), ("babilong", "lessons")])
def test_rows_in_the_macs_place_are_of_its_size(task, name):
    sizes = {row: size for _, row, size, _, _ in listing(load_study(task), name)}
    baselines = {"window", "attention", "window_recall", "attention_recall"}
    assert sizes.keys() == MEMORIES | baselines
    assert max(sizes.values()) <= 1.02 * min(sizes.values()), sizes
    mac = first(task, "mac", name)
    for row in sizes:
        recipe = first(task, row, name)
        assert (recipe.data, recipe.training) == (mac.data, mac.training)
        assert recipe.model.options.get("attention_conv_size") == (8 if row.endswith("_recall") else None)
        assert recipe.model.options.get("window_size") == {"mac": None, "lmm": None}.get(
            row, "all" if row.startswith("attention") else 64
        )


def test_each_lesson_begins_where_the_one_before_ended():
    study = load_study("babilong")
    stages = study.sets["lessons"].stages_of("mac")
    assert stages == [FIRST, "answers", "tasks", "practice", "books"]
    links = [f"{stage}:model.pretrained=runs/{before}" for before, stage in pairwise(stages)]
    lessons = study.recipes("lessons", "mac", stages, links)
    assert parameters(lessons[0], 2048) < 1_500_000
    assert [lesson.model.pretrained for lesson in lessons] == [None, *(f"runs/{stage}" for stage in stages[:-1])]
    prices = []
    for lesson in lessons:
        options = lesson.data.task_options
        assert options["same_length_rows"] == lesson.training.batch_size
        assert options["hints"] is True
        prices.append(lesson.model.options.get("memory_write_cost", 0.0))
    assert set(lessons[-1].data.task_options["tasks"]) == {"qa1", "qa2", "qa3", "qa4", "qa5"}
    assert prices == sorted(prices)
    assert prices[0] == 0 < prices[-1]


def test_a_window_of_all_tokens():
    with torch.device("meta"):
        assert build_model(first("niah", "attention"), byte_tokenizer()).config.window_size is None
    assert first("niah", "window").model.options["window_size"] == 64


def test_merged_leaves_both_tables_as_they_are():
    below, above = {"a": {"x": 1, "y": {"z": 2}}, "b": 3}, {"a": {"y": {"w": 4}}, "c": {"d": 5}}
    assert merged(below, above) == {"a": {"x": 1, "y": {"z": 2, "w": 4}}, "b": 3, "c": {"d": 5}}
    assert below == {"a": {"x": 1, "y": {"z": 2}}, "b": 3}
    assert merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_changes_have_a_prefix_or_none():
    assert split_change("training.steps=2") == ("", "training.steps=2")
    assert split_change("mac:data.train=C:/a=b") == ("mac", "data.train=C:/a=b")
    for wrong in ("exact", "steps=2", "mac:steps=2"):
        with pytest.raises(ValueError, match=f"--set '{wrong}' is not of the form"):
            split_change(wrong)


SMALL = """
title = "two rows"
[ask]
task = "niah"
names = "single_1"
lengths = "512"
[base.data]
train = "book.txt"
[base.training]
seed = 3
[rows.first.model]
variant = "lmm"
[rows.second]
like = "first"
training = { steps = 5 }
[stages.more]
training = { steps = 7, seed = 10 }
[sets.other.base.training]
steps = 9
[sets.other.rows.third]
"""


def study_file(folder, text=SMALL):
    path = folder / "small.toml"
    path.write_text(text)
    return path


def test_base_row_stage_set_and_changes_lie_over_one_another(tmp_path):
    study = load_study(str(study_file(tmp_path)))
    assert (study.name, study.title, list(study.sets)) == ("small", "two rows", ["main", "other"])
    changes = ["model.chunk_size=4", "data.sequence_length=64", "second:training.steps=6", "more:training.steps=8"]
    rows = study.sets["main"]
    stages = rows.stages_of("second")
    one, two = study.recipes("main", "second", stages, [*changes, "ask.samples=2"], seed=100)
    assert stages == [FIRST, "more"]
    assert (one.model.variant, one.model.options) == ("lmm", {"chunk_size": 4})
    assert two.model.options == {}  # the change of the model belongs to the first stage
    assert (one.data.sequence_length, two.data.sequence_length) == (64, 64)
    assert (one.training.steps, two.training.steps) == (6, 8)
    assert (one.training.seed, two.training.seed) == (103, 110)
    assert rows.stages_of("second", FIRST) == [FIRST]
    (third,) = study.recipes("other", "third", [FIRST])
    assert (third.training.steps, third.training.seed, third.data.train) == (9, 3, "book.txt")
    assert study.asked(["ask.samples=2", "ask.lengths=640", "ask.options.haystack=7"]).samples == 2
    assert study.asked(["ask.lengths=640"]).lengths == "640"
    assert study.asked(["ask.options.haystack=7"]).options == {"haystack": "7"}
    assert study.ask.options == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[ask]", "[asks]", r"unknown key 'asks'; .*; did you mean 'ask'\?"),
        ('like = "first"', 'like = "frist"', r"like = 'frist' is not a row; .*; did you mean 'first'\?"),
        ('like = "first"', 'like = "second"', r"like = 'second' leads back to itself"),
        ("steps = 5", 'steps = "5"', r"row second, stage base: training.steps must be a whole number"),
        ("steps = 7", "step = 7", r"stage more: unknown key 'step' in \[training\]"),
        ("[stages.more]", "[stages.first]", r"the stage \[stages.first\] has the name of a row"),
        ("[stages.more]", '[stages.more]\nrows = ["x"]', r"rows has 'x', which is not a row"),
        ('lengths = "512"', "length = 512", r"unknown key 'length' in \[ask\]; did you mean 'lengths'\?"),
        ("[ask]", "[tokenizer]\n[ask]", r"the \[tokenizer\] is trained on --train-text"),
        ("[ask]", "[files.test]\n[ask]", r"unknown key 'test' in \[files\]"),
        ("[ask]", "[ask", r"is not valid TOML"),
    ],
)
def test_a_wrong_study_names_the_file_and_the_key(old, new, message, tmp_path):
    path = study_file(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ValueError, match=rf"small\.toml.*{message}"):
        load_study(str(path))


def test_a_missing_study_names_those_that_are_there(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"'nia' is neither .* give ablation, babilong, depth, dna, forecasting, genome, graft, niah, table1, t",
    ):
        load_study("nia")
    with pytest.raises(ValueError, match="has no rows"):
        load_study(str(study_file(tmp_path, 'title = "x"')))


def test_the_study_of_the_documentation_is_whole(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "long_context.md").read_text()
    (block,) = re.findall(r"```toml\n(title = .*?)```", page, re.DOTALL)
    study = load_study(str(study_file(tmp_path, block)))
    recipes = [study.recipes("main", row, [FIRST], study.placeholders)[0] for row in study.sets["main"].rows]
    assert [recipe.model.options["window_size"] for recipe in recipes] == [32, 128]
    assert study.asked(study.placeholders).options == {"haystack": "test_text"}
