"""benchmarks/long_context: the changes to recipes, jobs side by side, and one small table from end to end."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from titanslab.experiments.arguments import RECIPES, read_arguments
from titanslab.experiments.jobs import run_jobs
from titanslab.experiments.long_context import main
from titanslab.experiments.plan import changes, make_jobs
from titanslab.experiments.row import Job, alone
from titanslab.experiments.table import draw, figures, markdown
from titanslab.experiments.tokenizer import make_tokenizer
from titanslab.training.recipe import load_recipe

LINE = "the river ran under an old bridge where nobody had crossed since winter came to town"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(" ".join(rng.choices(LINE.split(), k=9)).capitalize() + ". " for _ in range(2000)))
    return path


def arguments(text, work, *more):
    return ["niah", "--train-text", str(text), "--test-text", str(text), "--work", str(work), *more]


def test_tokenizer_keeps_digits_single_and_knows_the_phrases(text, tmp_path):
    from transformers import AutoTokenizer

    folder = make_tokenizer(str(text), None, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert len(tokenizer) <= 2048
    assert len(tokenizer.encode(" 1234567")) == 8
    line = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert len(tokenizer.encode(line)) < 30
    strange = "Zo\u00eb's \u2603 caf\u00e9\n"
    assert tokenizer.decode(tokenizer.encode(strange)) == strange
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    make_tokenizer(str(text), None, folder)
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before


def test_tokenizer_from_stories_has_their_words(text, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(str(text), None, tmp_path / "tokenizer", stories=True))
    assert len(tokenizer.encode(" Sandra travelled to the bathroom.")) == 6


def test_babilong_trains_on_stories_unless_told_otherwise(text, tmp_path):
    (tmp_path / "babi").mkdir()
    words = ["babilong", "--train-text", str(text), "--test-text", str(text), "--facts", str(tmp_path / "babi")]
    words += ["--work", str(tmp_path / "work")]
    made = changes(read_arguments(words), "mac", 0, tmp_path / "tokenizer")
    assert f"data.task_options.background={text}" in made
    assert "facts" not in " ".join(made)
    made = changes(read_arguments([*words, "--train-facts", str(tmp_path / "babi")]), "mac", 0, tmp_path / "tokenizer")
    assert f"data.task_options.facts={tmp_path / 'babi'}" in made


def test_changes_to_recipes(text, tmp_path):
    words = ["--steps", "500", "--batch", "8", "--set", "training.warmup_steps=5", "--set", "mac:model.chunk_size=32"]
    options = read_arguments(arguments(text, tmp_path, *words))
    made = changes(options, "mac", 3, tmp_path / "tokenizer")
    assert {"training.seed=3", "training.steps=500", "training.batch_size=8", "training.cpu=true"} <= set(made)
    recipe = load_recipe(RECIPES / "niah" / "mac.toml")
    share = recipe.data.task_options["curriculum_rows"] / (recipe.training.steps * recipe.training.batch_size)
    assert "data.task_options.same_length_rows=8" in made
    assert f"data.task_options.curriculum_rows={round(share * 500 * 8)}" in made
    assert made[-2:] == ["training.warmup_steps=5", "model.chunk_size=32"]
    assert changes(options, "lmm", 3, tmp_path)[-1] == "training.warmup_steps=5"


def test_the_second_stage_has_changes_and_samples_of_its_own(text, tmp_path):
    words = ["--late", "--rows", "mac,window,gated_deltanet", "--steps", "9", "--set", "late:training.steps=7"]
    options = read_arguments(arguments(text, tmp_path, *words))
    mac, window, delta = make_jobs(options, tmp_path / "tokenizer")
    assert mac.late_recipe == str(RECIPES / "late" / "niah.toml")
    assert not window.late_recipe
    assert not delta.late_recipe
    late = load_recipe(mac.late_recipe, mac.late_assignments)
    assert (late.training.steps, late.training.seed) == (7, 1000)
    assert late.data.task_options["haystack"] == str(text)
    assert load_recipe(mac.recipe, mac.assignments).training.steps == 9


def test_jobs_of_a_seed_come_together_and_attention_is_not_asked_far_away(text, tmp_path):
    words = ["--seeds", "0,1", "--rows", "mac,attention", "--far", "1M"]
    jobs = make_jobs(read_arguments(arguments(text, tmp_path, *words)), tmp_path / "tokenizer")
    names = [job.folder.rpartition("/")[2] for job in jobs]
    assert names == ["mac-seed0", "attention-seed0", "mac-seed1", "attention-seed1"]
    assert [job.far for job in jobs] == ["1M", "", "1M", ""]
    assert Job(**json.loads(jobs[0].to_json())).assignments == list(jobs[0].assignments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "mach"], "row 'mach' is not a recipe of recipes/niah"),
        (["--seeds", "a"], "--seeds 'a' must be whole numbers"),
        (["--lengths", "2x"], "2x"),
        (["--names", "single_4"], "single_4"),
        (["--test-text", "/nowhere"], "--test-text '/nowhere' does not exist"),
    ],
)
def test_what_is_wrong_shows_before_anything_runs(words, message, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments(text, tmp_path / "work", *words))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_row_that_fails_does_not_stop_the_others(text, tmp_path, capsys):
    words = ["--rows", "lmm,window", "--steps", "1", "--lengths", "512", "--samples", "1", "--off", ""]
    options = read_arguments(arguments(text, tmp_path / "work", *words, *SMALL, "--max-new-tokens", "2"))
    jobs = make_jobs(options, make_tokenizer(str(text), None, tmp_path / "tokenizer"))
    taken = tmp_path / "work" / "lmm-seed0" / "run"
    taken.mkdir(parents=True)
    (taken / "foreign.txt").write_text("")
    assert run_jobs(jobs, at_once=2, threads=1) == ["lmm-seed0"]
    assert re.search(r"lmm-seed0: FAILED: .*already holds files", capsys.readouterr().err)
    assert (tmp_path / "work" / "window-seed0" / "evaluation" / "results.jsonl").exists()


SMALL = []
for change in (
    "model.hidden_size=16", "model.intermediate_size=16", "model.num_hidden_layers=1", "data.sequence_length=256",
    "training.save_every=1", "training.log_every=1", "data.task_options.min_length=256",
    "data.task_options.later_min_length=256",
):  # fmt: skip
    SMALL += ["--set", change]


def test_table_from_end_to_end_and_again(text, tmp_path, capsys):
    words = ["--rows", "lmm", "--steps", "2", "--batch", "2", "--lengths", "512", "--samples", "2", "--far", "640"]
    words += ["--far-samples", "1", "--max-new-tokens", "2", "--output", str(tmp_path / "out.json"), *SMALL]
    assert main(arguments(text, tmp_path / "work", *words)) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    (result,) = report["results"]
    assert (result["row"], result["seed"], report["complete"]) == ("lmm", 0, True)
    assert result["training"]["steps"] == 2
    assert result["training"]["tokens"] == 2 * 2 * 256
    config = json.loads((tmp_path / "work" / "lmm-seed0" / "run" / "config.json").read_text())
    assert result["parameters"] > 16 * config["vocab_size"]
    cells = {(c["task"], c["length"]): c["samples"] for c in result["cells"]}
    tasks = [f"niah_single_{n}" for n in (1, 2, 3)]
    assert cells == {(t, 512): 2 for t in tasks} | {(t, 640): 1 for t in tasks}
    assert {(c["task"], c["length"]) for c in result["cells_memory_off"]} == {(t, 512) for t in tasks}
    table = (tmp_path / "out.md").read_text()
    assert "| lmm, memory off | 0.0 |  |" in table
    assert (tmp_path / "out.png").stat().st_size > 1000
    capsys.readouterr()

    # What is finished stays as it is; more samples are added to it.
    answers = tmp_path / "work" / "lmm-seed0" / "evaluation" / "results.jsonl"
    before = answers.read_text()
    words[words.index("--samples") + 1] = "3"
    assert main(arguments(text, tmp_path / "work", *words)) == 0
    assert answers.read_text().startswith(before)
    assert len(answers.read_text().splitlines()) == len(before.splitlines()) + 3
    assert "nothing to resume" in (tmp_path / "work" / "lmm-seed0" / "log.txt").read_text()


def test_a_second_stage_from_end_to_end(text, tmp_path):
    words = ["--rows", "lmm", "--steps", "1", "--batch", "2", "--lengths", "512", "--samples", "1", "--names"]
    words += ["single_2", "--off", "512", "--max-new-tokens", "2", "--output", str(tmp_path / "out.json"), *SMALL]
    for change in ("training.steps=2", "training.batch_size=2", "data.sequence_length=256"):
        words += ["--set", f"late:{change}"]
    assert main(arguments(text, tmp_path / "work", "--late", *words)) == 0
    first, late = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (first["row"], first["training"]["steps"], first["cells"]) == ("lmm", 1, [])
    assert (late["row"], late["training"]["steps"]) == ("lmm, second stage", 2)
    assert [c["samples"] for c in late["cells"] + late["cells_memory_off"]] == [1, 1]
    run = tmp_path / "work" / "lmm-seed0" / "run-late"
    config = json.loads((run / "config.json").read_text())
    assert (config["hidden_size"], config["memory_write_cost"]) == (16, 1.0)  # the first stage's model
    assert "| lmm, second stage, memory off | 0.0 |" in (tmp_path / "out.md").read_text()
    assert main(arguments(text, tmp_path / "work", *words)) == 0  # the first stage is tested without --late
    first, late = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [c["samples"] for c in first["cells"] + late["cells"]] == [1, 1]


def test_a_folder_that_is_worked_on_is_left_alone(tmp_path):
    with alone(tmp_path / "row"), pytest.raises(SystemExit, match="another process works on"), alone(tmp_path / "row"):
        pass
    with alone(tmp_path / "row"):
        pass


def test_ended_in_the_middle_the_jobs_end_too_and_go_on_later(text, tmp_path):
    words = arguments(text, tmp_path / "work", "--rows", "window", "--steps", "16", "--lengths", "512", "--off", "")
    words += ["--samples", "1", "--max-new-tokens", "2", "--output", str(tmp_path / "out.json"), *SMALL]
    start = [sys.executable, "-m", "titanslab.experiments.long_context", *words]
    process = subprocess.Popen(start, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    run = tmp_path / "work" / "window-seed0"
    until = time.monotonic() + 100
    while time.monotonic() < until and process.poll() is None and not list(run.glob("run/checkpoints/*-2")):
        time.sleep(0.01)
    process.terminate()
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "interrupted; the same command goes on" in errors
    assert not (run / "run" / "result.json").exists()
    with alone(run):  # nobody works on it any more
        pass
    assert main(words) == 0
    assert json.loads((run / "run" / "result.json").read_text())["resumed_from"] >= 1


def test_means_and_ranges_over_seeds():
    def result(row, seed, share):
        cells = [
            {"task": f"babilong_qa{n}", "length": 4000, "samples": 10, "scores": {"official": share + n / 100}}
            for n in range(1, 6)
        ]
        facts = {"final_loss": 0.5, "tokens": 100 + seed, "seconds": 7.0}
        return {"row": row, "seed": seed, "parameters": 5, "training": facts, "cells": cells, "cells_memory_off": []}

    results = [result("mac", 0, 0.5), result("mac", 1, 0.7)]
    found = figures(results)
    assert found["average qa1-qa5"]["mac"][4000] == [(pytest.approx(0.53), 50), (pytest.approx(0.73), 50)]
    text = markdown("babilong", results)
    assert "| model | 4k |\n|---|---|\n| mac | 63.0 (53-73) |" in text
    assert "| mac | 0, 1 | 5 | 100 to 101 | 0.500, 0.500 | 7, 7 |" in text


def exact_arguments(text, folder, *more):
    return ["niah", "--exact", "--train-text", str(text), "--test-text", str(text), "--work", str(folder), *more]


def test_facts_alone_have_a_place_in_the_picture(monkeypatch):
    """A logarithmic axis has no 0."""
    panels = []
    monkeypatch.setattr("titanslab.experiments.table.picture", lambda path, given, title: panels.extend(given))
    cells = [
        {"task": "babilong_qa1", "length": n, "samples": 4, "scores": {"official": score}}
        for n, score in ((0, 0.75), (16_000, 0.5), (128_000, 0.25))
    ]
    draw(Path("r.json"), "babilong", [{"row": "mac", "cells": cells, "cells_memory_off": cells}], "")
    (panel,) = panels
    assert panel["curves"] == {"mac": [(4000, 75, 75, 75), (16_000, 50, 50, 50), (128_000, 25, 25, 25)]}
    assert panel["ticks"] == {4000: "0k"}


def test_exact_rows_are_trained_as_recipes_exact_says(text, tmp_path):
    words = ["--rows", "mac,window", "--seeds", "3", "--set", "mac:data.shuffle=false", "--steps", "75"]
    mac, window = make_jobs(read_arguments(exact_arguments(text, tmp_path, *words)), tmp_path / "tokenizer")
    assert {mac.recipe, window.recipe} == {str(RECIPES / "exact" / "niah.toml")}
    assert (mac.lessons, mac.late_recipe) == ((), "")
    first, second = (load_recipe(job.recipe, job.assignments) for job in (mac, window))
    assert (first.model.variant, second.model.variant) == ("mac", "attention")
    assert second.model.options["window_size"] == 64
    assert (first.data.shuffle, second.data.shuffle) == (False, True)
    for loaded in (first, second):
        assert (loaded.training.seed, loaded.training.steps, loaded.training.optimizer) == (3, 75, "muon")
        assert loaded.data.task_options["curriculum_rows"] == 1050


def test_results_name_files_as_they_were_given(text, monkeypatch):
    monkeypatch.chdir(text.parent)
    options = read_arguments(exact_arguments(text.name, "work"))
    assert (options.train_text, options.work) == (str(text), text.parent / "work")
    assert (options.as_given["train_text"], options.as_given["work"]) == (text.name, "work")


def test_exact_from_end_to_end(text, tmp_path):
    words = ["--rows", "lmm,window", "--names", "single_2", "--lengths", "256", "--off", "256", "--samples", "2"]
    words += ["--max-new-tokens", "2", "--output", str(tmp_path / "out.json"), "--steps", "2", "--batch", "2"]
    changes = ["model.hidden_size=16", "model.intermediate_size=16", "training.log_every=1"]
    changes += ["data.sequence_length=512", "data.task_options.min_length=512"]
    for change in changes:
        words += ["--set", change]
    assert main(exact_arguments(text, tmp_path, *words)) == 0
    results = {result["row"]: result for result in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert [cell["samples"] for cell in results["lmm"]["cells_memory_off"]] == [2]
    assert not results["window"]["cells_memory_off"]
    config = json.loads((tmp_path / "lmm-seed0" / "run" / "config.json").read_text())
    assert (config["variant"], config["memory"]["depth"], config["memory_write_cost"]) == ("lmm", 1, 0.3)


def lesson_arguments(text, folder, *more):
    facts = folder / "babi"
    facts.mkdir(exist_ok=True)
    lines = "".join(f"1 Mary went to the {p}.\n2 Where is Mary? \t{p}\t1\n" for p in ("garden", "office"))
    (facts / "qa1_single-supporting-fact_test.txt").write_text(lines)
    words = ["babilong", "--lessons", "--train-text", str(text), "--test-text", str(text), "--facts", str(facts)]
    return [*words, "--work", str(folder / "work"), *more]


def test_lessons_come_one_after_the_other(text, tmp_path):
    words = [
        "--rows",
        "mac,window",
        "--seeds",
        "1",
        "--set",
        "lesson-2:training.steps=7",
        "--set",
        "mac:data.shuffle=false",
    ]
    mac, window = make_jobs(read_arguments(lesson_arguments(text, tmp_path, *words)), tmp_path / "tokenizer")
    recipes = sorted(str(path) for path in (RECIPES / "lessons").glob("*.toml"))
    assert [path for path, _ in mac.lessons] == recipes[:-1]
    assert mac.recipe == recipes[-1]
    assert not mac.late_recipe
    stages = [*mac.lessons, (mac.recipe, mac.assignments)]
    loaded = [load_recipe(*stage) for stage in stages]
    assert [recipe.training.seed for recipe in loaded] == [1, 21, 31, 41, 51]
    assert [recipe.training.steps for recipe in loaded][1] == 7 != loaded[2].training.steps
    assert not any(recipe.data.shuffle for recipe in loaded)
    assert {recipe.data.task_options["background"] for recipe in loaded} == {str(text)}
    first = [load_recipe(*job.lessons[0]).model for job in (mac, window)]
    assert [(model.variant, model.options["window_size"]) for model in first[1:]] == [("attention", 64)]
    assert first[0].variant == "mac"
    back = Job(**json.loads(mac.to_json()))
    assert [path for path, _ in back.lessons] == recipes[:-1]


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lesson_arguments, ["--late"], "--late and --lessons do not go together"),
        (lesson_arguments, ["--steps", "3"], "--steps and --lessons do not go together"),
        (lesson_arguments, ["--exact"], "--exact is for niah, and the task is babilong"),
        (
            lesson_arguments,
            ["--rows", "gated_deltanet"],
            "row 'gated_deltanet' is not a row of --lessons; there are mac, lmm",
        ),
        (exact_arguments, ["--late"], "--late and --exact do not go together"),
        (exact_arguments, ["--lessons"], "--lessons is for babilong, and the task is niah"),
        (
            exact_arguments,
            ["--rows", "gated_deltanet"],
            "row 'gated_deltanet' is not a row of --exact; there are mac, lmm",
        ),
    ],
)
def test_what_does_not_go_with_lessons_or_exact_is_said(make, words, message, text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(make(text, tmp_path, *words))
    assert message in capsys.readouterr().err


def test_lessons_from_end_to_end(text, tmp_path):
    words = ["--rows", "lmm,attention", "--names", "qa1", "--lengths", "0k", "--off", "0k", "--samples", "2"]
    words += ["--max-new-tokens", "2", "--output", str(tmp_path / "out.json")]
    changes = ["lesson-1:model.hidden_size=16", "lesson-1:model.intermediate_size=16", "training.steps=2"]
    changes += ["training.batch_size=2", "training.log_every=1", "data.task_options.same_length_rows=2"]
    for change in (*changes, 'data.task_options.tasks=["qa1"]', "data.sequence_length=256"):
        words += ["--set", change]
    assert main(lesson_arguments(text, tmp_path, *words)) == 0
    attention, lmm = sorted(json.loads((tmp_path / "out.json").read_text())["results"], key=lambda r: r["row"])
    for result in (attention, lmm):
        assert [run["steps"] for run in (*result["lessons"], result["training"])] == [2, 2, 2, 2, 2]
        assert [cell["samples"] for cell in result["cells"]] == [2]
    assert not attention["cells_memory_off"]
    assert [cell["samples"] for cell in lmm["cells_memory_off"]] == [2]
    tokens = sum(run["tokens"] for run in (*lmm["lessons"], lmm["training"]))
    assert f"| lmm | 0 | {lmm['parameters']:,} | {tokens:,} |" in (tmp_path / "out.md").read_text()
    config = json.loads((tmp_path / "work" / "lmm-seed0" / "run" / "config.json").read_text())
    assert (config["hidden_size"], config["memory_write_cost"]) == (16, 0.6)
