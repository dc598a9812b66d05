"""The runner of studies: files and changes, jobs side by side, and small tables from end to end."""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from titanslab.cli import main
from titanslab.experiments import asking
from titanslab.experiments.job import Job, alone
from titanslab.experiments.jobs import run_jobs
from titanslab.experiments.plan import Choice, make_jobs, open_work, write_recipes
from titanslab.experiments.sections import Ask, Paper, TokenizerPlan
from titanslab.experiments.study_file import load_study
from titanslab.experiments.table import draw, figures, markdown
from titanslab.experiments.tokenizer import make_tokenizer
from titanslab.training.recipe import load_recipe

LINE = "the river ran under an old bridge where nobody had crossed since winter came to town"
PLAIN = TokenizerPlan(phrases=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(" ".join(rng.choices(LINE.split(), k=9)).capitalize() + ". " for _ in range(2000)))
    return path


@pytest.fixture
def facts(tmp_path):
    folder = tmp_path / "babi"
    folder.mkdir()
    lines = "".join(f"1 Mary went to the {p}.\n2 Where is Mary? \t{p}\t1\n" for p in ("garden", "office"))
    (folder / "qa1_single-supporting-fact_test.txt").write_text(lines)
    return folder


def choice(text, work, *changes, **more):
    return Choice(work, {"train_text": str(text), "test_text": str(text)}, changes=list(changes), **more)


def niah(text, work, *changes, **more):
    return make_jobs(load_study("niah"), choice(text, work, *changes, **more))


def reproduce(*words):
    """Run `titans reproduce` in this process; returns the exit code."""
    try:
        main(["reproduce", *(str(word) for word in words)])
    except SystemExit as stop:
        return stop.code
    return 0


def with_text(text, work, *words):
    return ["niah", "--train-text", text, "--test-text", text, "--work", work, *words]


def test_tokenizer_keeps_digits_single_and_knows_the_phrases(text, tmp_path):
    from transformers import AutoTokenizer

    files = {"train_text": str(text)}
    folder = make_tokenizer(PLAIN, files, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert len(tokenizer) <= 2048
    assert len(tokenizer.encode(" 1234567")) == 8
    line = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert len(tokenizer.encode(line)) < 30
    strange = "Zo\u00eb's \u2603 caf\u00e9\n"
    assert tokenizer.decode(tokenizer.encode(strange)) == strange
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    make_tokenizer(PLAIN, files, folder)
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    small = AutoTokenizer.from_pretrained(make_tokenizer(TokenizerPlan(300), files, tmp_path / "small"))
    assert len(small) == 300


def test_tokenizer_from_stories_has_their_words(text, tmp_path):
    from transformers import AutoTokenizer

    folder = make_tokenizer(TokenizerPlan(stories=True), {"train_text": str(text)}, tmp_path / "tokenizer")
    assert len(AutoTokenizer.from_pretrained(folder).encode(" Sandra travelled to the bathroom.")) == 6


def test_babilong_trains_on_stories_without_train_facts(text, facts, tmp_path):
    chosen = choice(text, tmp_path / "work", rows="mac")
    chosen.files["facts"] = str(facts)
    (job,) = make_jobs(load_study("babilong"), chosen)
    options = job.recipes()[0].data.task_options
    assert options["background"] == str(text)
    assert "facts" not in options
    assert job.ask.options == {"background": str(text), "facts": str(facts)}
    chosen.files["train_facts"] = str(facts)
    (job,) = make_jobs(load_study("babilong"), chosen)
    assert job.recipes()[0].data.task_options["facts"] == str(facts)


def test_changes_of_all_rows_of_one_row_and_of_one_stage(text, tmp_path):
    changes = ["training.warmup_steps=5", "mac:model.chunk_size=32", "late:training.steps=7", "model.conv_size=2"]
    chosen = {"rows": "mac,window,gated_deltanet", "seeds": "3", "until": "late"}
    mac, window, delta = niah(text, tmp_path, *changes[:3], **chosen)
    first, second = mac.recipes()
    assert first.training.seed == 3
    assert first.training.cpu
    assert first.data.tokenizer == str(tmp_path / "tokenizer")
    assert (first.model.options["chunk_size"], window.recipes()[0].model.options.get("chunk_size")) == (32, None)
    assert (first.training.steps, second.training.steps) == (1500, 7)
    assert (first.training.warmup_steps, second.training.warmup_steps, second.training.seed) == (5, 5, 1003)
    assert second.model.pretrained == str(tmp_path / "main" / "mac-seed3" / "base")
    assert second.data.task_options["haystack"] == str(text)
    assert (window.stages, delta.stages) == (["base"], ["base"])  # the late stage is for memories
    (mac,) = niah(text, tmp_path, *changes, rows="mac", until="late")
    assert [recipe.model.options.get("conv_size") for recipe in mac.recipes()] == [2, None]


def test_exact_rows_have_the_recipe_of_their_set(text, tmp_path):
    mac, window = niah(text, tmp_path, "mac:data.shuffle=false", sets="exact", rows="mac,window", seeds="3")
    assert (mac.name, mac.folder) == ("exact/mac-seed3", tmp_path / "exact" / "mac-seed3")
    ((first,), (second,)) = mac.recipes(), window.recipes()
    assert (first.model.variant, second.model.variant) == ("mac", "attention")
    assert second.model.options["window_size"] == 64
    assert (first.data.shuffle, second.data.shuffle) == (False, True)
    for recipe in (first, second):
        assert (recipe.training.seed, recipe.training.steps, recipe.training.optimizer) == (3, 750, "muon")


def test_lessons_come_one_after_the_other(text, facts, tmp_path):
    changes = ["answers:training.steps=7", "mac:data.shuffle=false"]
    chosen = choice(text, tmp_path / "work", *changes, sets="lessons", rows="mac,window", seeds="1")
    chosen.files["facts"] = str(facts)
    mac, window = make_jobs(load_study("babilong"), chosen)
    lessons = mac.recipes()
    assert [recipe.training.seed for recipe in lessons] == [1, 21, 31, 41, 51]
    assert lessons[1].training.steps == 7 != lessons[2].training.steps
    assert not any(recipe.data.shuffle for recipe in lessons)
    assert {recipe.data.task_options["background"] for recipe in lessons} == {str(text)}
    assert [recipe.model.pretrained for recipe in lessons[1:]] == [str(mac.folder / s) for s in mac.stages[:-1]]
    first = [job.recipes()[0].model for job in (mac, window)]
    assert [(model.variant, model.options.get("window_size")) for model in first] == [("mac", None), ("attention", 64)]
    assert [part.folder for part in mac.rounds()] == ["evaluation-books", "evaluation-books-frozen"]
    assert [part.folder for part in window.rounds()] == ["evaluation-books"]


def test_jobs_of_a_seed_come_together_and_attention_is_not_asked_far_away(text, tmp_path):
    jobs = niah(text, tmp_path, "ask.far=1M", seeds="0,1", rows="mac,attention")
    assert [job.name for job in jobs] == [f"main/{row}-seed{seed}" for seed in (0, 1) for row in ("mac", "attention")]
    far = [[part.lengths for part in job.rounds() if part.samples == 10] for job in jobs]
    assert far == [["1M"], [], ["1M"], []]
    assert Job.from_json(jobs[0].to_json()) == jobs[0]
    (attention,) = niah(text, tmp_path, "ask.far=1M", rows="attention", far_rows="attention")
    assert attention.far


def test_rounds_of_questions():
    ask = Ask("niah", "single_1", lengths="2k", samples=5, far="1M", far_samples=2, frozen="4k", frozen_samples=1)
    near, far, off = asking.rounds(ask, "base", memory=True, far=True)
    assert (near, far) == (("evaluation-base", "2k", 5, True), ("evaluation-base", "1M", 2, True))
    assert off == ("evaluation-base-frozen", "4k", 1, False)
    assert asking.rounds(ask, "base", memory=False, far=False) == [near]
    usual = asking.rounds(Ask("niah", "single_1", lengths="2k", samples=5), "base", memory=True, far=True)
    assert usual == [near, ("evaluation-base-frozen", "2k", 5, False)]
    assert asking.rounds(Ask("niah", "single_1", lengths="2k", samples=5, frozen=""), "base", True, True) == [near]
    assert asking.rounds(Ask(), "base", memory=True, far=True) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "mach"], "--rows has 'mach', which is not one of main; there are lmm, mal"),
        (
            ["--sets", "exat"],
            "--sets has 'exat', which is not one of niah; there are main, exact; did you mean 'exact'?",
        ),
        (["--sets", "exact", "--rows", "gated_deltanet"], "--rows has 'gated_deltanet', which is not one of exact"),
        (["--sets", "exact", "--stage", "late"], "--stage 'late' is not a stage of exact"),
        (["--set", "lat:training.steps=1"], "'lat' is not a row or stage; there are base, late"),
        (["--set", "training.step=1"], "unknown key 'step' in [training]; did you mean 'steps'?"),
        (["--set", "ask.pice=1"], "unknown key 'pice' in [ask]; did you mean 'piece'?"),
        (["--seeds", "a"], "--seeds 'a' must be whole numbers"),
        (["--lengths", "2x"], "ask.lengths: length is '2x'"),
        (["--names", "single_4"], "single_4"),
        (["--test-text", "/nowhere"], "--test-text '/nowhere' does not exist"),
        (["--facts", "."], "--facts is not used by the study niah; leave it out"),
        (["--output", "."], "--output '.' is a folder; name a JSON file"),
    ],
)
def test_a_wrong_argument_shows_before_anything_runs(words, message, text, tmp_path, capsys):
    assert reproduce(*with_text(text, tmp_path / "work", *words)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_missing_files_are_named(text, tmp_path, capsys):
    assert reproduce("niah", "--work", tmp_path / "work") == 2
    assert "--train-text is missing; the study niah needs it: name a file or folder" in capsys.readouterr().err
    assert reproduce("niah", "--table-only", "--work", tmp_path / "work") == 2
    assert "holds no finished run of niah" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_work_folder_holds_one_study(text, tmp_path):
    study = load_study("niah")
    opened = open_work(study, choice(text, tmp_path / "work"))
    assert (opened.path, opened.ask) == (tmp_path / "work" / "niah.toml", study.ask)
    assert open_work(opened, choice(text, tmp_path / "work")).path == opened.path
    with pytest.raises(ValueError, match=r"holds the study niah.toml; give another folder for babilong.toml"):
        open_work(load_study("babilong"), choice(text, tmp_path / "work"))


def test_list_shows_rows_sizes_and_stages(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert reproduce("niah", "--list", "--sets", "main") == 0
    out = capsys.readouterr().out
    assert re.search(r"mac\s+│ 1,013,144\s+│ base, \(late\)\s+│ The memory as context", out)
    assert re.search(r"window\s+│ 1,009,280\s+│ base\s+│ Control", out)
    assert "--train-text: needed" in out


SMALL = []
for change in (
    "model.hidden_size=16", "model.intermediate_size=16", "model.num_hidden_layers=1", "data.sequence_length=256",
    "training.save_every=1", "training.log_every=1", "data.task_options.min_length=256",
    "data.task_options.later_min_length=256",
):  # fmt: skip
    SMALL += ["--set", change]


def trained(steps, batch=2):
    return ["--set", f"training.steps={steps}", "--set", f"training.batch_size={batch}"]


def test_a_row_that_fails_does_not_stop_the_others(text, tmp_path, capsys):
    changes = [
        *SMALL[1::2],
        "training.steps=1",
        "ask.lengths=512",
        "ask.samples=1",
        "ask.frozen=",
        "ask.max_new_tokens=2",
    ]
    chosen = choice(text, tmp_path / "work", *changes, rows="lmm,window")
    jobs = make_jobs(open_work(load_study("niah"), chosen), chosen)
    taken = tmp_path / "work" / "main" / "lmm-seed0" / "base"
    taken.mkdir(parents=True)
    (taken / "foreign.txt").write_text("")
    seen = []
    assert run_jobs(jobs, at_once=2, threads=1, progress=lambda *amounts: seen.append(amounts)) == ["main/lmm-seed0"]
    assert re.search(r"lmm-seed0: FAILED: .*already holds files", capsys.readouterr().err)
    assert (tmp_path / "work" / "main" / "window-seed0" / "evaluation-base" / "results.jsonl").exists()
    tokens = 3 * 1 * 8 * 256 + 512 * 3  # of the row that is left: three times those of training, and of three answers
    assert seen[-1] == (tokens // 1000, tokens // 1000)


def test_table_from_end_to_end_and_again(in_process, text, tmp_path, capsys):
    words = ["--rows", "lmm", *trained(2), "--lengths", "512", "--samples", "2", "--far", "640", *SMALL]
    words += ["--far-samples", "1", "--set", "ask.max_new_tokens=2", "--output", tmp_path / "out.json"]
    assert reproduce(*with_text(text, tmp_path / "work", *words)) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    (result,) = report["results"]
    assert (result["row"], result["seed"], report["complete"]) == ("lmm", 0, True)
    assert (report["settings"]["train_text"], report["settings"]["samples"]) == (str(text), 2)
    assert result["training"]["steps"] == 2
    assert result["training"]["tokens"] == 2 * 2 * 256
    config = json.loads((tmp_path / "work" / "main" / "lmm-seed0" / "base" / "config.json").read_text())
    assert result["parameters"] > 16 * config["vocab_size"]
    cells = {(c["task"], c["length"]): c["samples"] for c in result["cells"]}
    tasks = [f"niah_single_{n}" for n in (1, 2, 3)]
    assert cells == {(t, 512): 2 for t in tasks} | {(t, 640): 1 for t in tasks}
    assert {(c["task"], c["length"]) for c in result["cells_memory_off"]} == {(t, 512) for t in tasks}
    table = (tmp_path / "out.md").read_text()
    assert "| lmm, memory off | 0.0 |  |" in table
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert "| lmm, memory off | 0.0 |  |" in capsys.readouterr().out

    # Finished work is kept; more samples are added to it.
    answers = tmp_path / "work" / "main" / "lmm-seed0" / "evaluation-base" / "results.jsonl"
    before = answers.read_text()
    words[words.index("--samples") + 1] = "3"
    assert reproduce(*with_text(text, tmp_path / "work", *words)) == 0
    assert answers.read_text().startswith(before)
    assert len(answers.read_text().splitlines()) == len(before.splitlines()) + 3
    assert "nothing to resume" in (tmp_path / "work" / "main" / "lmm-seed0" / "log.txt").read_text()


def test_a_late_stage_from_end_to_end(in_process, text, tmp_path):
    words = ["--rows", "lmm", *trained(1), "--lengths", "512", "--samples", "1", "--names", "single_2", *SMALL]
    words += ["--set", "ask.max_new_tokens=2", "--set", "late:training.steps=2"]
    assert reproduce(*with_text(text, tmp_path / "work", "--stage", "late", *words)) == 0
    output = tmp_path / "work" / "results.json"
    (late,) = json.loads(output.read_text())["results"]
    assert (late["row"], late["training"]["steps"]) == ("lmm, late", 2)
    assert [run["steps"] for run in late["lessons"]] == [1]
    assert [c["samples"] for c in late["cells"] + late["cells_memory_off"]] == [1, 1]
    config = json.loads((tmp_path / "work" / "main" / "lmm-seed0" / "late" / "config.json").read_text())
    assert (config["hidden_size"], config["memory_write_cost"]) == (16, 1.0)  # the model of the first stage
    assert "| lmm, late, memory off | 0.0 |" in output.with_suffix(".md").read_text()
    assert reproduce(*with_text(text, tmp_path / "work", *words)) == 0  # without --stage the first stage is asked
    first, late = json.loads(output.read_text())["results"]
    assert (first["row"], first["training"]["steps"], first["lessons"]) == ("lmm", 1, [])
    assert [c["samples"] for c in first["cells"] + late["cells"]] == [1, 1]


STUDY = """
title = "Two tiny models"
[files]
train_text = { needed = true, to = ["data.train"] }
[base.model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
[base.data]
sequence_length = 64
[base.training]
steps = 40
batch_size = 2
save_every = 1
log_every = 1
warmup_steps = 1
[rows.lmm.model]
variant = "lmm"
[rows.window.model]
variant = "attention"
window_size = 16
"""


def test_a_study_of_ones_own_interrupted_and_continued(text, tmp_path):
    (tmp_path / "own.toml").write_text(STUDY)
    words = ["reproduce", "own.toml", "--train-text", str(text), "--jobs", "2"]
    start = [sys.executable, "-m", "titanslab.cli", *words]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(start, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    work = tmp_path / "runs" / "own"
    until = time.monotonic() + 100
    while time.monotonic() < until and process.poll() is None and not list(work.glob("main/*/base/checkpoints/*-2")):
        time.sleep(0.01)
    process.terminate()
    errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "interrupted; the same command continues" in errors
    (stopped, *_) = (path.parents[2] for path in work.glob("main/*/base/checkpoints/*-2"))
    assert not (stopped / "base" / "result.json").exists()
    with alone(stopped):  # no process works on it any more
        pass
    done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((stopped / "base" / "result.json").read_text())["resumed_from"] >= 1
    results = json.loads((work / "results.json").read_text())["results"]
    assert [(result["row"], result["seed"]) for result in results] == [("lmm", 0), ("window", 0)]
    assert all(result["cells"] == [] for result in results)  # no [ask]: the models are trained only
    assert "| lmm | 0 | " in done.stdout
    assert not (work / "results.png").exists()


def test_recipes_for_titans_train(text, tmp_path, capsys):
    chosen = Choice(tmp_path / "work", {"train_text": str(text)}, rows="mac", until="late")
    study = load_study("niah")
    jobs = make_jobs(open_work(study, chosen), chosen, need_test_files=False)
    ((first, run), (second, _)) = write_recipes(jobs)
    assert run == tmp_path / "work" / "main" / "mac-seed0" / "base"
    assert [load_recipe(path) for path in (first, second)] == jobs[0].recipes()
    assert load_recipe(second).model.pretrained == str(run)
    words = ["--recipes", "--sets", "exact", "--rows", "lmm", "--work", tmp_path / "work"]
    assert reproduce("niah", "--train-text", text, *words) == 0
    line = capsys.readouterr().out.strip()
    assert (
        line == f"titans train {tmp_path}/work/exact/lmm-seed0/base.toml --output {tmp_path}/work/exact/lmm-seed0/base"
    )
    assert load_recipe(line.split()[2]).data.tokenizer == str(tmp_path / "work" / "tokenizer")
    assert (tmp_path / "work" / "tokenizer" / "tokenizer.json").exists()


def test_a_folder_that_is_worked_on_is_left_alone(tmp_path):
    with (
        alone(tmp_path / "row"),
        pytest.raises(SystemExit, match="written by another process"),
        alone(tmp_path / "row"),
    ):
        pass
    with alone(tmp_path / "row"):
        pass


def result(row, seed, share):
    cells = [
        {"task": f"babilong_qa{n}", "length": 4000, "samples": 10, "scores": {"official": share + n / 100}}
        for n in range(1, 6)
    ]
    facts = {"final_loss": 0.5, "tokens": 100 + seed, "seconds": 7.0}
    return {"row": row, "seed": seed, "parameters": 5, "training": facts, "cells": cells, "cells_memory_off": []}


def test_means_and_ranges_over_seeds():
    ask = load_study("babilong").ask
    results = [result("mac", 0, 0.5), result("mac", 1, 0.7)]
    found = figures(results, ask)
    assert found["average qa1-qa5"]["mac"][4000] == [(pytest.approx(0.53), 50), (pytest.approx(0.73), 50)]
    text = markdown(results, ask, Paper())
    assert "| model | 4k |\n|---|---|\n| mac | 63.0 (53-73) |" in text
    assert "| mac | 0, 1 | 5 | 100 to 101 | 0.500, 0.500 | 7, 7 |" in text


def test_the_papers_figures_stand_below_ours():
    study = load_study("babilong")
    text = markdown([result("mac", 0, 0.5), result("lmm", 0, 0.5)], study.ask, study.paper)
    assert "| mac | 53.0 |\n| mac, the paper | 99.0 |\n| lmm | 53.0 |" in text
    assert text.count("the paper") == 1
    text = markdown([result("mac, lessons", 0, 0.5), result("mac, late", 0, 0.5)], study.ask, study.paper)
    assert "| mac, lessons | 53.0 |\n| mac, the paper | 99.0 |\n| mac, late | 53.0 |" in text
    assert "The paper: Titans, arXiv 2501.00663, figure 6" in text
    niah = load_study("niah")
    lengths = len(asking.lengths_of(niah.ask, niah.paper.lengths))
    for row in niah.paper.rows.values():
        assert {name: len(values) for name, values in row.items()} == {f"single_{n}": lengths for n in (1, 2, 3)}


def test_facts_alone_have_a_place_in_the_picture(monkeypatch):
    """A logarithmic axis has no 0."""
    panels = []
    monkeypatch.setattr("titanslab.experiments.table.picture", lambda path, given, title: panels.extend(given))
    cells = [
        {"task": "babilong_qa1", "length": n, "samples": 4, "scores": {"official": score}}
        for n, score in ((0, 0.75), (16_000, 0.5), (128_000, 0.25))
    ]
    results = [{"row": "mac", "cells": cells, "cells_memory_off": cells}]
    draw(Path("r.json"), results, load_study("babilong").ask, "")
    (panel,) = panels
    assert panel["curves"] == {"mac": [(4000, 75, 75, 75), (16_000, 50, 50, 50), (128_000, 25, 25, 25)]}
    assert panel["ticks"] == {4000: "0k"}


def test_exact_from_end_to_end(in_process, text, tmp_path):
    words = ["--sets", "exact", "--rows", "lmm,window", "--names", "single_2", "--lengths", "256", "--samples", "2"]
    words += ["--set", "ask.max_new_tokens=2", *trained(2)]
    changes = ["model.hidden_size=16", "model.intermediate_size=16", "training.log_every=1"]
    changes += ["data.sequence_length=512", "data.task_options.min_length=512"]
    for change in changes:
        words += ["--set", change]
    assert reproduce(*with_text(text, tmp_path, *words)) == 0
    results = {result["row"]: result for result in json.loads((tmp_path / "results.json").read_text())["results"]}
    assert list(results) == ["lmm, exact", "window, exact"]
    assert [cell["samples"] for cell in results["lmm, exact"]["cells_memory_off"]] == [2]
    assert not results["window, exact"]["cells_memory_off"]
    config = json.loads((tmp_path / "exact" / "lmm-seed0" / "base" / "config.json").read_text())
    assert (config["variant"], config["memory"]["depth"], config["memory_write_cost"]) == ("lmm", 1, 0.3)


def test_lessons_from_end_to_end(in_process, text, facts, tmp_path):
    words = ["babilong", "--sets", "lessons", "--rows", "lmm,attention", "--names", "qa1", "--lengths", "0k"]
    words += ["--train-text", text, "--test-text", text, "--facts", facts, "--work", tmp_path / "work"]
    words += ["--samples", "2", "--set", "ask.max_new_tokens=2", *trained(2)]
    changes = ["model.hidden_size=16", "model.intermediate_size=16", "training.log_every=1"]
    changes += ["data.task_options.same_length_rows=2", 'data.task_options.tasks=["qa1"]', "data.sequence_length=256"]
    for change in changes:
        words += ["--set", change]
    assert reproduce(*words) == 0
    results = json.loads((tmp_path / "work" / "results.json").read_text())["results"]
    lmm, attention = results
    assert (lmm["row"], attention["row"]) == ("lmm, lessons", "attention, lessons")
    for one in (attention, lmm):
        assert [run["steps"] for run in (*one["lessons"], one["training"])] == [2, 2, 2, 2, 2]
        assert [cell["samples"] for cell in one["cells"]] == [2]
    assert not attention["cells_memory_off"]
    assert [cell["samples"] for cell in lmm["cells_memory_off"]] == [2]
    tokens = sum(run["tokens"] for run in (*lmm["lessons"], lmm["training"]))
    table = (tmp_path / "work" / "results.md").read_text()
    assert f"| lmm, lessons | 0 | {lmm['parameters']:,} | {tokens:,} |" in table
    config = json.loads((tmp_path / "work" / "lessons" / "lmm-seed0" / "books" / "config.json").read_text())
    assert (config["hidden_size"], config["memory_write_cost"]) == (16, 0.6)
