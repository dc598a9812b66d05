"""Running a task: batches, records, resuming after a stop, tables and pictures."""

import json
import re

import pytest
import torch

from titanslab.data import byte_tokenizer
from titanslab.data.encode import load_counter
from titanslab.evaluation.pictures import heat_map
from titanslab.evaluation.results import read_records
from titanslab.evaluation.run_task import TaskRun, run_cells
from titanslab.evaluation.table import summarise, tables
from titanslab.locks import only_writer
from titanslab.tasks.niah.samples import niah_cells
from titanslab.tasks.table import TASKS


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def cells():
    return niah_cells("single_1", [1024, 2048], load_counter("byte"), "byte")


class Reader:
    """A perfect model; with `blind` it reads only the last 900 bytes of the prompt."""

    def __init__(self, tokenizer, blind=False, stop_after=None):
        self.tokenizer, self.blind, self.stop_after = tokenizer, blind, stop_after
        self.batches = []

    def __call__(self, prompts, advance=None):
        if self.stop_after is not None and len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(len(prompts))
        answers = []
        for prompt in prompts:
            if advance is not None:
                advance(len(prompt))
            text = self.tokenizer.decode(prompt[-900:] if self.blind else prompt)
            found = re.search(r"is: (\S+)\.\n", text)
            answers.append(self.tokenizer.encode(f" {found[1]}." if found else " unknown"))
        return answers


class Bar:
    def __init__(self):
        self.total = self.done = 0
        self.names = set()

    def __call__(self, done, total, note=None):
        assert done >= self.done
        self.done, self.total = done, total
        self.names.add(note)


def _run(cells, reader, tokenizer, folder, num_samples=8, **options):
    settings = options.pop("settings", {"model": "reader"})
    fields = {"lengths": "1k", "samples": num_samples, "model": "", "output": folder, "max_new_tokens": 8}
    progress = options.pop("progress", None)
    run = TaskRun(task=TASKS["niah"], device=torch.device("cpu"), **fields, **options)
    return run_cells(run, cells, reader, tokenizer, settings, progress).asked


def test_every_sample_is_answered_and_scored(cells, tokenizer, tmp_path):
    reader, bar = Reader(tokenizer), Bar()
    records = _run(cells, reader, tokenizer, tmp_path, batch_size=3, progress=bar)
    assert [(r["length"], r["index"]) for r in records] == [(n, i) for n in (1024, 2048) for i in range(8)]
    assert all(r["scores"] == {"contained": 1.0} for r in records)
    assert all(r["prompt_tokens"] + 127 <= r["length"] for r in records)
    assert reader.batches == [3, 3, 2] * 2
    assert bar.done == bar.total == 8 * (1024 + 2048)
    assert len(bar.names) == 2
    written = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert sorted(written, key=lambda r: (r["length"], r["index"])) == records


def test_batches_are_bounded_by_tokens(cells, tokenizer, tmp_path):
    reader = Reader(tokenizer)
    _run(cells, reader, tokenizer, tmp_path, batch_tokens=2048)
    assert reader.batches == [2] * 4 + [1] * 8


def test_stopped_and_gone_on_is_the_same_as_one_run(cells, tokenizer, tmp_path):
    whole = _run(cells, Reader(tokenizer, blind=True), tokenizer, tmp_path / "whole", batch_size=2)
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        _run(cells, Reader(tokenizer, blind=True, stop_after=3), tokenizer, broken, batch_size=2)
    with open(broken / "results.jsonl", "a") as file:
        file.write('{"task": "niah_single_1", "length": 1024, "ind')  # an unfinished line
    reader = Reader(tokenizer, blind=True)
    records = _run(cells, reader, tokenizer, broken, batch_size=2)
    assert sum(reader.batches) == 10

    def plain(records):
        return [{k: v for k, v in r.items() if k != "seconds"} for r in records]

    assert plain(records) == plain(whole)
    assert 0 < sum(r["scores"]["contained"] for r in records) < 16
    again = Reader(tokenizer)
    assert _run(cells, again, tokenizer, broken) == records
    assert again.batches == []


def test_more_samples_and_lengths_can_be_added(cells, tokenizer, tmp_path):
    _run(cells[:1], Reader(tokenizer), tokenizer, tmp_path, num_samples=2)
    reader = Reader(tokenizer)
    assert len(_run(cells, reader, tokenizer, tmp_path, num_samples=3)) == 6
    assert sum(reader.batches) == 4
    assert len(_run(cells[:1], reader, tokenizer, tmp_path, num_samples=1)) == 1


def test_a_folder_of_other_settings_is_refused(cells, tokenizer, tmp_path):
    _run(cells, Reader(tokenizer), tokenizer, tmp_path, num_samples=1)
    with pytest.raises(ValueError, match=r"another model \('reader', now 'other'\); name another folder"):
        _run(cells, Reader(tokenizer), tokenizer, tmp_path, settings={"model": "other"})


def test_cells_of_other_samples_are_refused_and_others_can_be_added(tokenizer, tmp_path):
    text, other = tmp_path / "a.txt", tmp_path / "b.txt"
    text.write_text("A long road led past the mill and over the old bridge to town. " * 200)
    other.write_text("Nobody knew who had built the wall that ran along the river. " * 200)
    counter, out = load_counter("byte"), tmp_path / "out"

    def run(variants, haystack, length=1024):
        made = niah_cells(variants, [length], counter, "byte", haystack=haystack)
        return _run(made, Reader(tokenizer), tokenizer, out, num_samples=1)

    run("single_1", None)
    assert len(run("single_1,single_2", str(text))) == 2
    with pytest.raises(
        ValueError, match=r"results of niah_single_2-1024 made with another haystack \(1 file of .* byte"
    ):
        run("single_2", str(other))
    run("single_2", str(other), 2048)
    assert len(run("single_2", str(text))) == 1
    assert json.loads((out / "settings.json").read_text())["cells"].keys() == {
        "niah_single_1-1024", "niah_single_2-1024", "niah_single_2-2048",
    }  # fmt: skip


def test_a_sample_counts_once_and_a_folder_has_one_writer(cells, tokenizer, tmp_path):
    records = _run(cells, Reader(tokenizer), tokenizer, tmp_path, num_samples=2)
    path = tmp_path / "results.jsonl"
    double = json.loads(path.read_text().splitlines()[0]) | {"scores": {"contained": 0.0}}
    path.write_text(path.read_text() + json.dumps(double) + "\n")
    assert _run(cells, Reader(tokenizer), tokenizer, tmp_path, num_samples=2) == records
    assert read_records(tmp_path) == sorted(records, key=lambda r: (r["length"], r["index"]))
    with only_writer(tmp_path, "it"), pytest.raises(ValueError, match="written by another process"):
        _run(cells, Reader(tokenizer), tokenizer, tmp_path)
    _run(cells, Reader(tokenizer), tokenizer, tmp_path)


def test_a_damaged_sample_file_is_made_again(cells, tokenizer, tmp_path):
    _run(cells, Reader(tokenizer), tokenizer, tmp_path / "a", 3, sample_folder=tmp_path / "samples")
    files = {f: f.read_text() for f in (tmp_path / "samples").iterdir()}
    for file, text in files.items():
        lines = text.splitlines()
        file.write_text("\n".join([lines[0], '{"task": "nia', lines[2]]) + "\n")
    _run(cells, Reader(tokenizer), tokenizer, tmp_path / "b", 3, sample_folder=tmp_path / "samples")
    assert {f: f.read_text() for f in (tmp_path / "samples").iterdir()} == files


def test_a_broken_line_in_the_middle_is_named(cells, tokenizer, tmp_path):
    _run(cells, Reader(tokenizer), tokenizer, tmp_path, num_samples=2)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join([lines[0], "{half", *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"line 2 is not valid JSON.*; remove that line"):
        _run(cells, Reader(tokenizer), tokenizer, tmp_path)


def test_samples_are_kept_and_read_back(cells, tokenizer, tmp_path):
    folder = tmp_path / "samples"
    first = _run(cells, Reader(tokenizer), tokenizer, tmp_path / "a", 4, sample_folder=folder)
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert len(files) == 2
    assert all(name.startswith("niah_single_1-") and name.endswith(".jsonl") for name in files)
    # A later run reads the samples from the file, so a changed target appears in its records.
    file = folder / min(files)
    text = file.read_text()
    file.write_text(text.replace(first[0]["target"], "7777777"))
    later = _run(cells, Reader(tokenizer), tokenizer, tmp_path / "b", 4, sample_folder=folder)
    assert later[0]["target"] == "7777777"
    file.write_text(text)
    _run(cells, Reader(tokenizer), tokenizer, tmp_path / "c", 6, sample_folder=folder)
    assert all(f.read_bytes().startswith(files[f.name]) for f in folder.iterdir())
    other = niah_cells("single_1", [1024], load_counter("byte"), "byte", seed=1)
    _run(other, Reader(tokenizer), tokenizer, tmp_path / "d", 4, sample_folder=folder)
    assert len(list(folder.iterdir())) == 3


def test_table_and_heat_maps(cells, tokenizer, tmp_path):
    from rich.console import Console

    records = _run(cells, Reader(tokenizer, blind=True), tokenizer, tmp_path, 20)
    summary = summarise(records)
    assert [(row["length"], row["samples"]) for row in summary] == [(1024, 20), (2048, 20)]
    mean = summary[1]["scores"]["contained"]
    assert mean == sum(r["scores"]["contained"] for r in records[20:]) / 20
    assert summary[1]["standard_error"] == pytest.approx((mean * (1 - mean) / 20) ** 0.5)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(*tables(summary, TASKS["niah"], "contained", "S-NIAH", 100))
    shown = captured.get()
    assert "2k" in shown
    assert f"{100 * mean:.1f}" in shown
    heat_map(records, TASKS["niah"], tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


def test_babilong_average_and_map(tmp_path):
    from rich.console import Console

    records = [
        {"task": f"babilong_qa{n}", "length": 1000, "index": 0, "scores": {"official": n % 2, "corrected": 1.0}}
        for n in (10, 1, 2, 3, 4, 5)
    ]
    summary = summarise(records)
    assert [row["task"] for row in summary] == [f"babilong_qa{n}" for n in (1, 2, 3, 4, 5, 10)]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(*tables(summary, TASKS["babilong"], "official", "BABILong", 100))
    assert re.search(r"average qa1-qa5\W+60.0", captured.get())
    heat_map(records, TASKS["babilong"], tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_a_wide_table_is_cut_into_readable_ones():
    from rich.console import Console

    summary = [
        {
            "task": f"babilong_qa{n}",
            "length": 1000 * 2**k,
            "samples": 1,
            "scores": {"official": 1.0},
            "standard_error": 0,
        }
        for n in range(1, 6)
        for k in range(12)
    ]
    console = Console(width=80, record=True)
    parts = tables(summary, TASKS["babilong"], "official", "BABILong", 80)
    for part in parts:
        console.print(part)
    text = console.export_text()
    assert len(parts) == 2
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.count("100.0") == 6 * 12
    assert len(tables(summary, TASKS["babilong"], "official", "BABILong", 1000)) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": [1]}, "scores must be a table, got list [1]"),
        ({"scores": {}}, "scores must be"),
        ({"scores": {"other": 1.0}}, "scores has other, and lines before"),
        ({"scores": {"string_match": "x"}}, "scores[...] must be a number"),
        ({"index": "x"}, "index must be a whole number, got str 'x'"),
        ({"index": {}}, "index must be a whole number, got dict {}"),
        ({"length": -1}, "length must be a whole number of at least 0"),
        ({"depth": "x"}, "depth must be a number"),
        ({"depth": 101}, "depth must be a number of at most 100"),
        ({"task": None}, "task must be text"),
        ({"output": None}, "output must be text"),
    ],
)
def test_a_line_with_a_value_of_a_wrong_type_is_named(tmp_path, change, words):
    whole = {"task": "niah_single_1", "length": 600, "index": 0, "depth": 5, "target": "a", "output": "b", "seconds": 1}
    whole["scores"] = {"match": 1.0}
    lines = [json.dumps(whole), json.dumps(whole | {"index": 1} | change)]
    (tmp_path / "results.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_records(tmp_path)
    assert "results.jsonl, line 2" in str(caught.value)
    assert str(caught.value).endswith("; remove that line or name another folder")
