"""Two commands on one place at once, and commands that are killed: nothing is lost, doubled or half written."""

import json
import os
import signal
import time

import pytest

from children import Child
from titanslab import TitansCache

REFUSED = "is being written by another process"


@pytest.fixture
def race(tmp_path):
    """Start the same or two commands together; returns them, the one that succeeded first."""

    def run(*commands, delay=0.0, stdin=""):
        begun = []
        for number, words in enumerate(commands):
            begun.append(Child(tmp_path / f"child-{number}", *words, stdin=stdin))
            time.sleep(delay)
        codes = [child.wait() for child in begun]
        assert sorted(codes) == [0, 2], [child.err for child in begun]
        return [child for _, child in sorted(zip(codes, begun, strict=True), key=lambda pair: pair[0])]

    return run


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_two_trainings_in_one_folder(race, recipe_file, tmp_path, delay):
    output = tmp_path / "run"
    words = ("train", recipe_file, "--output", output, "--set", "training.steps=40")
    _, second = race(words, words, delay=delay)
    assert REFUSED in second.err or "already holds a" in second.err
    assert steps(output) == list(range(1, 41))
    assert not leftovers(output)


def test_a_training_resumed_while_it_runs(recipe_file, tmp_path):
    output = tmp_path / "run"
    words = ("train", recipe_file, "--output", output, "--set", "training.steps=20")
    first = Child(tmp_path / "first", *words)
    while not (output / "metrics.jsonl").exists() and first.process.is_alive():
        time.sleep(0.005)
    os.kill(first.process.pid, signal.SIGSTOP)
    second = Child(tmp_path / "second", *words, "--resume")
    code = second.wait()
    os.kill(first.process.pid, signal.SIGCONT)
    assert code == 2
    assert f"output folder {str(output)!r} {REFUSED} (process {first.process.pid} on " in second.err
    assert first.wait() == 0
    assert steps(output) == list(range(1, 21))


def test_two_readings_into_one_file(race, trained, text_file, tmp_path):
    save = tmp_path / "a.memory"
    words = ("read", text_file, "--model", trained, "--save", save, "--piece-size", 16, "--save-every", 0)
    first, second = race(words, words)
    assert f"--save {str(save)!r} {REFUSED}" in second.err
    assert " tokens read in " in first.out
    assert TitansCache.header(save).notes["text"]["finished"]
    assert not leftovers(tmp_path)


def test_two_chats_in_one_session(race, trained, tmp_path):
    session = tmp_path / "a.session"
    lines = "".join(f"line {i}\n" for i in range(8))
    words = ("chat", "--model", trained, "--session", session, "--max-new-tokens", 2)
    _, second = race(words, words, stdin=lines)
    assert f"session {str(session)!r} {REFUSED}" in second.err
    assert TitansCache.header(session).notes["turns"] == 8


def test_two_evaluations_in_one_folder(race, trained, tmp_path):
    output = tmp_path / "answers"
    words = ("evaluate", "niah", "--model", trained, "--lengths", "1k", "--samples", 40, "--max-new-tokens", 2)
    _, second = race(*[(*words, "--output", output)] * 2)
    assert REFUSED in second.err
    records = [json.loads(line)["index"] for line in (output / "results.jsonl").read_text().splitlines()]
    assert sorted(records) == list(range(40))


def test_killed_readings_go_on(trained, text_file, tmp_path):
    save, whole = tmp_path / "a.memory", tmp_path / "whole.memory"
    words = ("read", text_file, "--model", trained, "--piece-size", 16, "--save-every", 0)
    assert Child(tmp_path / "whole", *words, "--save", whole).wait() == 0
    killed = 0
    for pause in (0.05, 0.1, 0.2):
        again = ("--resume",) if save.exists() else ()
        child = Child(tmp_path / f"child-{killed}-{pause}", *words, "--save", save, *again)
        deadline = time.monotonic() + 60
        while not save.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(pause)
        if child.process.is_alive():
            child.process.kill()
            killed += child.wait() == -9
        else:
            break
    assert killed
    if not TitansCache.header(save).notes["text"]["finished"]:
        assert Child(tmp_path / "last", *words, "--save", save, "--resume").wait() == 0
    one, other = (TitansCache.header(path).notes["text"] for path in (save, whole))
    assert one == other
    assert not leftovers(tmp_path)


def test_a_killed_evaluation_goes_on(trained, tmp_path):
    words = ("evaluate", "niah", "--model", trained, "--lengths", "1k", "--samples", 12, "--max-new-tokens", 2)
    words += ("--batch-size", 1)
    assert Child(tmp_path / "whole-child", *words, "--output", tmp_path / "whole").wait() == 0
    output = tmp_path / "killed"
    child = Child(tmp_path / "child", *words, "--output", output)
    while not (output / "results.jsonl").exists() and child.process.is_alive():
        time.sleep(0.002)
    child.process.kill()
    assert child.wait() == -signal.SIGKILL
    assert Child(tmp_path / "again", *words, "--output", output).wait() == 0

    def answers(folder):
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        return [{name: line[name] for name in ("task", "index", "output", "scores")} for line in lines]

    assert answers(output) == answers(tmp_path / "whole")
    assert not leftovers(output)
