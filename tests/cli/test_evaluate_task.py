"""`titans evaluate TASK` and the table of tasks; `echo` shows that a task is one module and one row of the table."""

import json
import random
import subprocess
import sys
from functools import partial

import pytest
from typer.core import TyperOption

from titanslab.cli.evaluate import task_command
from titanslab.data.encode import TextEncoder
from titanslab.tasks.mixture import Mixture
from titanslab.tasks.row import ending, scored
from titanslab.tasks.sample import Cell, TaskSample, derive_seed
from titanslab.tasks.table import TASKS, Option, Task

WORDS = ("apple", "bridge", "candle", "dragon")


class Echo:
    """The prompt holds one word `length` times, and the answer is the word."""

    def __init__(self, voice: str):
        self.name = f"echo_{voice}"

    def sample(self, length: int, index: int, seed: int = 42) -> TaskSample:
        word = random.Random(derive_seed(self.name, length, seed, index)).choice(WORDS)
        word = word.upper() if self.name == "echo_loud" else word
        return TaskSample(self.name, length, index, " ".join([word] * length) + " and again", word, {"depth": 0.0})


def echo_cells(voice, lengths, counter, counter_name, *, seed):
    voices = ("soft", "loud") if voice == "both" else (voice,)
    return [
        Cell(f"echo_{v}", n, partial(Echo(v).sample, n, seed=seed), echo_score, {"seed": seed, "length": n})
        for v in voices
        for n in lengths
    ]


def echo_score(sample, output):
    return {"same": float(sample.target in output)}


def echo_rows(tokenizer, *, voice="soft"):
    encode, end = TextEncoder(tokenizer).ids, ending(tokenizer)

    def make(length, seed):
        sample = Echo(voice).sample(2, 0, seed)
        return scored(encode(sample.prompt), encode(f" {sample.target}") + end)

    return make


ECHO = Task(
    name="echo",
    title="Echo",
    about="A word that is repeated.",
    rows=echo_rows,
    cells=echo_cells,
    score=echo_score,
    help="Repeat a word.",
    kilo=10,
    lengths="2,1k",
    samples=3,
    max_new_tokens=4,
    parts=("soft", "loud"),
    parts_option="voice",
    options=(Option("voice", "soft, loud or both.", "both"),),
    average=("soft", "loud"),
)

RECIPE = """
[model]
preset = "tiny"
variant = "mac"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
segment_len = 16
chunk_size = 8

[data]
task = "echo"
task_options = { voice = "loud", min_length = 48 }
sequence_length = 64

[training]
steps = 2
batch_size = 2
warmup_steps = 1
cpu = true
"""


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setitem(TASKS, "echo", ECHO)


def test_a_new_task_is_trained_on_and_evaluated(echo, titans, tmp_path):
    (tmp_path / "echo.toml").write_text(RECIPE)
    run = tmp_path / "run"
    code, _, error = titans("train", tmp_path / "echo.toml", "--output", run)
    assert code == 0, error
    code, shown, error = titans("evaluate", "echo", "--model", run, "--device", "cpu")
    assert code == 0, error
    assert all(text in shown for text in ("Echo: same, 3 samples", "echo_soft", "1k", "average soft-loud"))
    out = run / "evaluation" / "echo"
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(r["task"], r["length"], r["index"]) for r in records] == [
        (task, length, index) for task in ("echo_soft", "echo_loud") for length in (2, 10) for index in range(3)
    ]
    assert json.loads((out / "settings.json").read_text())["task"] == "echo"
    assert (out / "heat_map.png").read_bytes()[:4] == b"\x89PNG"
    code, shown, _ = titans("evaluate", "echo", "--model", run, "--voice", "soft", "--samples", 4, "--device", "cpu")
    assert code == 0
    assert "echo_loud" not in shown
    assert len((out / "results.jsonl").read_text().splitlines()) == 12 + 2


def test_a_new_task_makes_rows_for_a_mixture(echo):
    from titanslab.data import byte_tokenizer

    tokenizer = byte_tokenizer()
    row = Mixture("echo", tokenizer, 64, 0, voice="loud")[0]
    answer = row["labels"][row["labels"] != -100].tolist()
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() in [word.upper() for word in WORDS]


def test_the_help_of_evaluate_lists_the_tasks_of_the_table(echo, titans):
    code, shown, _ = titans("evaluate", "--help")
    assert code == 0
    assert all(TASKS[name].about in shown for name in ("niah", "babilong", "echo"))
    assert "kv_recall" not in shown


@pytest.mark.parametrize("name", ["niah", "babilong", "echo"])
def test_every_task_has_help_with_an_example_and_a_text_for_every_option(name, echo, titans):
    code, shown, _ = titans("evaluate", name, "--help")
    assert code == 0
    assert f"Example: titans evaluate {name}" in " ".join(shown.split())
    options = {p.name: p for p in task_command(TASKS[name]).params if isinstance(p, TyperOption)}
    assert {option.name for option in TASKS[name].options} < set(options)
    assert all(option.help for option in options.values())
    defaults = {key: options[key].default for key in ("lengths", "samples", "max_new_tokens")}
    task = TASKS[name]
    assert defaults == {"lengths": task.lengths, "samples": task.samples, "max_new_tokens": task.max_new_tokens}


def test_a_task_without_cells_or_an_unknown_one_is_no_verb(fails):
    assert "No such command 'kv_recall'" in fails("evaluate", "kv_recall")
    assert "No such option: --facts" in fails("evaluate", "niah", "--facts", "x")


def test_help_reads_the_table_without_the_libraries_of_data_sets():
    code = (
        "import sys\nfrom titanslab.cli import main\n"
        "try:\n    main(['evaluate', 'niah', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = ('datasets', 'titanslab.data', 'titanslab.tasks.niah.samples')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout
    assert shown.splitlines()[-1] == "[]"
