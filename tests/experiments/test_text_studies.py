"""Studies of running text: rows of one size, sweeps, scales and budgets, borrowed sets, and a table from end to end."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from titanslab.cli import main
from titanslab.experiments import common_sense, speed, text_loss, text_tables, tuning
from titanslab.experiments.job import time_job
from titanslab.experiments.plan import Choice, listing, make_jobs, open_work, width_changes
from titanslab.experiments.run import choose, default_name, write_results
from titanslab.experiments.sections import Language, row_lengths
from titanslab.experiments.study import FIRST
from titanslab.experiments.study_file import load_study
from titanslab.experiments.texts import part_of, split_texts
from titanslab.tasks.sample import parse_length
from titanslab.training.watchdog import NonFiniteError

LINE = "The river ran under an old bridge where nobody had crossed since winter came to town, they said. "
TITANS = {"lmm", "mac", "mag", "mal"}

SMALL = """
title = "Two small rows"
[texts]
train = ["data.train"]
validation = ["perplexity.text"]
[tokenizer]
vocabulary = 300
[size]
like = "lmm"
widths = { intermediate_size = 1 }
[sweep]
rates = [1e-3, 1e-2]
share = 0.5
[perplexity]
lengths = "row,128"
max_tokens = 400
[speed]
lengths = "row,128"
tokens = 64
repeats = 1
[paper]
source = "a paper"
[paper.tables.perplexity]
columns = ["there"]
rows = { lmm = [26.5] }
[base.model]
hidden_size = 16
num_hidden_layers = 1
[base.data]
sequence_length = 64
pack_documents = false
tokenizer = "./tokenizer"
[base.training]
steps = 20
batch_size = 2
warmup_steps = 1
save_every = 1
log_every = 1
[rows.lmm.model]
variant = "lmm"
num_attention_heads = 2
intermediate_size = 40
[rows.llama.model]
architecture = "llama"
num_attention_heads = 2
num_key_value_heads = 2
tie_word_embeddings = true
[scales.gpu.base.training]
steps = 200
[scales.gpu.rows.lmm.model]
intermediate_size = 80
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def books(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    for name, count in (("train-0", 3), ("validation", 2), ("test", 1)):
        lines = [json.dumps({"text": f"{name} {n}. " + LINE * 20}) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def texts_in(paths):
    (path,) = paths
    return [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]


def reproduce(*words):
    try:
        main(["reproduce", *(str(word) for word in words)])
    except SystemExit as stop:
        return stop.code
    return 0


def test_table1_has_the_paper_s_rows_and_baselines_of_one_size():
    sizes = {row: size for _, row, size, _, _ in listing(load_study("table1"), None)}
    baselines = {"attention", "window", "llama", "mamba2", "gated_deltanet", "lightning", "ttt_linear", "ttt_mlp"}
    assert sizes.keys() >= TITANS | baselines | {"samba", "gated_deltanet_window", "attention_conv", "window_conv"}
    assert max(sizes.values()) <= 1.03 * min(sizes.values()), sizes
    assert 2_000_000 <= sizes["lmm"] <= 3_000_000


def test_rows_of_the_studies_differ_in_the_model_alone_and_read_20m_tokens():
    for name in ("table1", "ablation"):
        study = load_study(name)
        recipes = [study.recipes("main", row, [FIRST], study.placeholders)[0] for row in study.sets["main"].rows]
        first = recipes[0]
        assert all((recipe.data, recipe.training) == (first.data, first.training) for recipe in recipes)
        tokens = first.training.steps * first.training.batch_size * first.data.sequence_length
        assert 19e6 < tokens < 21e6
        assert (first.data.sequence_length, first.data.train) == (2048, ["train"])
        assert study.paper.tables["perplexity"].rows.keys() <= study.sets["main"].rows.keys()


def test_each_ablation_takes_one_thing_away():
    study = load_study("ablation")
    changes = {
        "linear": {"memory_depth": 1},
        "no_convolution": {"conv_size": 1},
        "no_momentum": {"memory_momentum": False},
        "no_decay": {"memory_forgetting": False},
        "no_persistent": {"num_persistent_tokens": 0},
        "chunk256": {"chunk_size": 256},
        "forget_to_start": {"memory_forget_to": "start"},
        "shared_gates": {"memory_gates_per_layer": False},
    }
    for name in ("main", "long_context"):

        def options(row, name=name):
            return study.recipes(name, row, [FIRST], study.placeholders)[0].model.options

        whole = options("lmm")
        for row, change in changes.items():
            assert options(row) == whole | change
            assert all(whole[key] != value for key, value in change.items())
    (main_row,) = study.recipes("main", "usual_start", [FIRST], study.placeholders)
    assert main_row.model.start == "usual"


def test_the_long_context_column_is_the_study_niah():
    study, niah = load_study("ablation"), load_study("niah")
    (recipe,) = study.recipes("long_context", "mac", [FIRST], study.placeholders)
    (theirs,) = niah.recipes("main", "mac", [FIRST], niah.placeholders)
    assert (recipe.data.task, recipe.training) == ("niah", theirs.training)
    assert recipe.data.train is None
    assert recipe.data.task_options == theirs.data.task_options | {"haystack": "train_excerpt"}
    ask = study.asked(study.placeholders, "long_context")
    assert (ask.task, ask.lengths, ask.options) == ("niah", niah.ask.lengths, {"haystack": "validation_excerpt"})
    assert study.asked((), "main").task == ""
    assert not study.measured("sweep", "long_context").rates
    assert study.run == list(study.sets) == ["main", "long_context"]


def test_a_scale_and_a_budget_change_the_numbers(study):
    whole, part = load_study(str(study)), load_study(str(study), budget=0.1)
    large = load_study(str(study), "gpu")
    (recipe,), (small,), (big,) = (s.recipes("main", "lmm", [FIRST], s.placeholders) for s in (whole, part, large))
    assert (recipe.training.steps, small.training.steps, big.training.steps) == (20, 2, 200)
    assert small.training.warmup_steps == 1
    assert (recipe.model.options["intermediate_size"], big.model.options["intermediate_size"]) == (40, 80)
    assert part.measured("perplexity", "main").max_tokens == 40
    assert part.measured("perplexity", "main", changes=["perplexity.max_tokens=7"]).max_tokens == 7
    assert [default_name(s) for s in (whole, part, large)] == ["small", "small-budget-0.1", "small-gpu"]
    with pytest.raises(ValueError, match=r"--scale 'tpu' is not a scale of small\.toml; it has cpu, gpu"):
        load_study(str(study), "tpu")
    with pytest.raises(ValueError, match=r"--budget 2.* must be above 0 and at most 1"):
        load_study(str(study), budget=2)


def test_lengths_may_name_the_training_row():
    assert row_lengths("row,32k, 4k", 2048, "x") == [2048, 4096, 32768]
    assert row_lengths("", 2048, "x") == []
    with pytest.raises(ValueError, match=r"speed\.lengths: .*'2x'.* or `row`"):
        row_lengths("2x", 2048, "speed.lengths")


def test_texts_are_split_by_name_or_a_part_is_held_out(books, tmp_path):
    split = split_texts([str(books)], [], tmp_path)
    assert [path.rpartition("/")[2] for path in split.train] == ["train-0.jsonl"]
    assert [path.rpartition("/")[2] for path in split.validation] == ["validation.jsonl"]
    one = tmp_path / "one.txt"
    one.write_text(LINE * 100)
    split = split_texts([str(one)], [], tmp_path)
    train, held = map(texts_in, split[:2])
    assert train[0] + held[0] == LINE * 100
    assert len(held[0]) == pytest.approx(0.05 * len(LINE) * 100, rel=0.01)
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join(json.dumps({"text": f"{n} {LINE}"}) for n in range(200)))
    split = split_texts([str(many)], [], tmp_path / "other")
    train, held = map(texts_in, split[:2])
    assert sorted([*train, *held]) == sorted(f"{n} {LINE}" for n in range(200))
    assert 3 <= len(held) <= 20
    bundled = split_texts([], [], tmp_path / "none")
    assert "books in the package" in bundled.about
    assert all(sum(map(len, texts_in(paths))) > 30_000 for paths in bundled[:2])
    with pytest.raises(ValueError, match="--validation needs --data"):
        split_texts([], [str(books)], None)


def test_a_part_of_the_budget_reads_a_part_of_the_text(books, tmp_path):
    split = part_of(split_texts([str(books)], [], tmp_path), 500, tmp_path)
    assert texts_in(split.train) == [("train-0 0. " + LINE * 20)[:500]]
    assert split.validation == split_texts([str(books)], [], tmp_path).validation
    (path,) = split.train
    assert part_of(split_texts([str(books)], [], tmp_path), 900, tmp_path).train == [path]
    assert len(texts_in([path])[0]) == 500  # the part is kept


def test_every_document_gives_a_part_of_the_tokens(books):
    source = [str(books / "train-0.jsonl")]
    found = [*text_loss.beginnings(source, 8, 240, 4.0)]
    assert [text[:9] for text in found] == ["train-0 0", "train-0 1", "train-0 2"]
    assert {len(text) for text in found} == {4 * 80}
    assert {len(text) for text in text_loss.beginnings(source, 100, 240, 4.0)} == {4 * 110}  # a whole window


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "gup"], "--scale 'gup' is not a scale of small.toml; it has cpu, gpu"),
        (["--budget", "0"], "--budget 0.0 must be above 0 and at most 1"),
        (["--data", "/nowhere"], "--data: '/nowhere' does not exist"),
        (["--language-data", "."], "--language-data is not used by the study small"),
        (["--set", "perplexity.lenghts=2k"], "unknown key 'lenghts' in [perplexity]; did you mean 'lengths'?"),
        (["--set", "perplexity.lengths=2x"], "perplexity.lengths: "),
        (["--train-text", "."], "--train-text is not used by the study small"),
    ],
)
def test_wrong_words_show_before_anything_runs(words, message, study, tmp_path, capsys):
    assert reproduce(study, "--work", tmp_path / "work", *words) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_data_is_for_studies_of_text(books, capsys):
    assert reproduce("niah", "--data", books) == 2
    assert "--data is not used by the study niah" in capsys.readouterr().err


def test_two_rows_from_end_to_end_and_again(in_process, study, books, tmp_path, capsys):
    words = [study, "--data", books, "--budget", "0.1", "--work", tmp_path / "work", "--jobs", "2"]
    words += ["--set", "speed.lengths="]
    assert reproduce(*words) == 0
    report = json.loads((tmp_path / "work" / "results.json").read_text())
    lmm, llama = report["results"]
    assert (lmm["row"], llama["row"], report["complete"]) == ("lmm", "llama", True)
    assert abs(llama["parameters"] - lmm["parameters"]) <= 0.03 * lmm["parameters"]
    for result in (lmm, llama):
        sweep = result["sweep"]
        losses = {run["rate"]: run["loss"] for run in sweep["runs"]}
        assert (sorted(losses), {run["steps"] for run in sweep["runs"]}) == ([0.001, 0.01], {1})
        assert sweep["chosen"] == min(losses, key=losses.__getitem__)
        assert f"learning_rate = {sweep['chosen']}" in result["training"]["recipe"]
        assert (result["training"]["steps"], result["training"]["tokens"]) == (2, 2 * 2 * 64)
        assert [one["context_length"] for one in result["perplexity"]["results"]] == [64, 128]
    table = (tmp_path / "work" / "results.md").read_text()
    assert re.search(r"\| model \| 64 \| 128 \| there \(paper\) \|", table)
    assert re.search(r"\| lmm \| [\d.]+ \| [\d.]+ \| 26\.5 \|", table)
    assert "Columns marked (paper): a paper." in table
    assert (tmp_path / "work" / "results.png").stat().st_size > 1000
    assert not list((tmp_path / "work" / "main" / "lmm-seed0" / "sweep").rglob("*.safetensors"))

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "main").rglob("*.json")}
    capsys.readouterr()
    assert reproduce(*words) == 0
    assert "started" not in capsys.readouterr().err  # finished rows start no process
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "main").rglob("*.json")}
    assert before == after
    words[words.index("--budget") + 1] = "0.4"
    capsys.readouterr()
    assert reproduce(*words) == 2
    assert "was made with --budget 0.1, now it is 0.4; give another folder" in capsys.readouterr().err


def test_steps_are_timed_at_each_length_and_once(study, books, tmp_path):
    work = tmp_path / "work"
    chosen = Choice(work, data=[str(books)], rows="lmm")
    (job,) = make_jobs(open_work(load_study(str(study)), chosen), chosen, fitted=True)
    assert job.lengths("speed") == [64, 128]
    job.folder.mkdir(parents=True)
    time_job(job)
    content = speed.read(job.folder)
    assert [(one["length"], one["batch"]) for one in content["results"]] == [(64, 1), (128, 1)]
    assert all(one["tokens_per_second"] > 0 and len(one["seconds"]) == 1 for one in content["results"])
    assert not job.times
    written = (job.folder / speed.RESULT).stat().st_mtime_ns
    time_job(job)
    assert (job.folder / speed.RESULT).stat().st_mtime_ns == written
    write_results(job.plan, chosen, {})
    assert re.search(r"\| lmm \| [\d,]+ \| [\d,]+ \|", (work / "results.md").read_text())


def test_widths_are_chosen_for_the_tokenizer_that_was_made(study, books, tmp_path):
    plan = load_study(str(study))
    chosen = Choice(tmp_path / "work", data=[str(books)])
    opened = open_work(plan, chosen)
    jobs = make_jobs(opened, chosen, fitted=True)
    widths = width_changes(opened, "main", ["lmm", "llama"], jobs[0].changes, chosen.work)
    ((change, fitted),) = widths.items()
    assert change in jobs[1].changes
    assert jobs[1].recipes()[0].model.options["intermediate_size"] == fitted.options["intermediate_size"]
    assert jobs[0].recipes()[0].model.options["intermediate_size"] == 40
    assert choose(plan, dict.fromkeys(("output", "stage", "changes", "sets", "rows", "far_rows"), None) | {
        "work": None, "seeds": "0", "tokenizer": None, "device": "cpu", "names": None, "lengths": None, "samples": None,
        "far": None, "far_samples": None, "train_text": None, "test_text": None, "facts": None, "train_facts": None,
        "nouns": None, "adjectives": None, "base": None,
    }).work.name == "small"  # fmt: skip


def test_the_study_of_the_documentation_is_whole(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    (block,) = re.findall(r"```toml\n(title = .*?)```", page, re.DOTALL)
    path = tmp_path / "convolution.toml"
    path.write_text(block)
    study = load_study(str(path))
    recipes = [study.recipes("main", row, [FIRST], study.placeholders)[0] for row in study.sets["main"].rows]
    assert [recipe.model.options["conv_size"] for recipe in recipes] == [4, 8]
    assert study.scales == ("cpu", "gpu")


def test_depth_has_a_set_for_each_length_and_throughput_the_rows_of_table1():
    study = load_study("depth")
    for name in study.run:
        (recipe,) = study.recipes(name, "depth3", [FIRST], study.placeholders)
        settings, length = recipe.training, recipe.data.sequence_length
        assert length == parse_length(name, 1024, "length")
        assert settings.batch_size * settings.accumulation * length == 32768
        assert recipe.model.options["memory_depth"] == 3
        assert study.measured("speed", name).lengths == study.measured("perplexity", name).lengths == "row"
    assert study.paper.tables["perplexity"].columns == study.paper.tables["speed"].columns == study.run
    for scale in ("cpu", "gpu"):
        timed, table = load_study("throughput", scale), load_study("table1", scale)
        assert timed.sets["table1"].rows == table.sets["main"].rows
        assert timed.sets["table1"].base == table.sets["main"].base
        assert timed.measured("size", "table1").like == "lmm"
        assert not timed.measured("perplexity", "table1").lengths
        assert timed.tokenizer == table.tokenizer


def test_common_sense_runs_through_the_command_once(tmp_path, monkeypatch):
    calls = []

    def command(words, **_):
        calls.append(words)
        output = Path(words[words.index("--output") + 1])
        output.mkdir()
        table = {"PIQA acc": {"value": 51.5, "standard_error": 1.2}}
        (output / "summary.json").write_text(json.dumps({"table": table, "average": None}))
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(common_sense.subprocess, "run", command)
    settings = Language(tasks=["piqa", "boolq"], data="files", limit=20)
    for _ in range(2):
        common_sense.answer_once(tmp_path / "run", settings, tmp_path, "cpu")
    (words,) = calls
    assert words[1:5] == ["-m", "titanslab.cli", "evaluate", "language"]
    given = {name: words[words.index(name) + 1] for name in ("--model", "--tasks", "--data", "--limit")}
    assert given == {"--model": str(tmp_path / "run"), "--tasks": "piqa,boolq", "--data": "files", "--limit": "20"}
    result = {"model": "lmm", "language": common_sense.read(tmp_path)}
    assert text_tables.language([result]) == {"PIQA acc": {"lmm": [51.5]}}

    failed = subprocess.CompletedProcess(words, 2, "", "titans: error: no such task\n")
    monkeypatch.setattr(common_sense.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match="titans evaluate language: titans: error: no such task"):
        common_sense.answer_once(tmp_path / "run", Language(tasks=["x"], data="files"), tmp_path, "cpu")


def test_a_rate_that_diverges_is_recorded_and_not_chosen(study, books, tmp_path, monkeypatch):
    chosen = Choice(tmp_path / "work", data=[str(books)], rows="lmm")
    (job,) = make_jobs(open_work(load_study(str(study)), chosen), chosen, fitted=True)
    seen = []

    def train(recipe, output, resume):
        seen.append((recipe.training.learning_rate, recipe.training.steps))
        if recipe.training.learning_rate > 5e-3:
            raise NonFiniteError("step 3: the loss is nan")
        return {"loss": 4.0}

    monkeypatch.setattr("titanslab.training.run.train", train)
    monkeypatch.setattr(text_loss, "measure", lambda *_: [SimpleNamespace(loss=4.5)])
    job.folder.mkdir(parents=True)
    sections = job.measured("sweep"), job.measured("perplexity")
    tuning.tune(job.recipes()[0], *sections, job.folder, "cpu")
    record = tuning.read(job.folder)
    assert (record["chosen"], seen) == (1e-3, [(1e-3, 10), (1e-2, 10)])
    assert [run["loss"] for run in record["runs"]] == [4.5, None]
    assert record["runs"][1]["diverged"] == "step 3: the loss is nan"
    assert job.recipes()[0].training.learning_rate == 1e-3
    tuning.tune(job.recipes()[0], *sections, job.folder, "cpu")
    assert len(seen) == 2  # what is recorded is not trained again
    result = {"row": "lmm", "sweep": record}
    assert "| lmm | 4.500 | diverged | 10 | 0.001 |" in text_tables._rates([result])
    sections[0].rates = [1e-2]
    with pytest.raises(ValueError, match=r"every learning rate of the sweep diverged: 0\.01"):
        tuning.tune(job.recipes()[0], *sections, job.folder, "cpu")


def test_the_study_of_genomes_shows_bits_per_base(tmp_path):
    study = load_study("genome")
    sizes = {row: size for _, row, size, _, _ in listing(study, None)}
    assert max(sizes.values()) <= 1.03 * min(sizes.values()), sizes
    measured = {"perplexity": 4.0, "bits_per_byte": 1.9512, "context_length": 8192, "positions": []}
    result = {"set": "main", "row": "lmm", "model": "lmm", "seed": 0, "perplexity": {"results": [measured]}}
    result |= {"cells": [], "language": {}, "sweep": {}}
    (table,) = text_tables.tables(study, [result], [])
    assert "**Bits per byte of held-out text**" in table
    assert "| lmm | 1.9512 |" in table


def test_a_row_may_be_measured_at_lengths_of_its_own(tmp_path):
    study = load_study("genome")
    assert study.measured("perplexity", "main", "lmm").lengths == "row,1m"
    assert study.measured("perplexity", "main", "attention").lengths == "row"
    assert study.measured("perplexity", "main", "attention", ["attention:perplexity.lengths=4k"]).lengths == "4k"
    path = tmp_path / "own.toml"
    path.write_text(SMALL + "[rows.other]\nperplexity = { length = 'row' }\n")
    with pytest.raises(ValueError, match=r"unknown key 'length' in \[rows\.other\.perplexity\]"):
        load_study(str(path))
    path.write_text(SMALL.replace('lengths = "row,128"\nmax', 'show = "bits"\nlengths = "row,128"\nmax'))
    with pytest.raises(ValueError, match=r"perplexity\.show is 'bits'; allowed: perplexity, bits_per_byte"):
        load_study(str(path))
