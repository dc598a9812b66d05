"""`python -m tests.fuzz.races`: commands that are killed, and two at once in one place, as processes of their own.

A killed command is started again until it ends; its files must then be those of a command that nobody disturbed. Of two
commands in one place one must succeed and the other be refused with a line that names the place;
where both need the same tokens, both succeed. The small forms of these tests are in `tests/cli/test_races.py`.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import valid
from .driver import prepare
from .results import answers
from .run import losses

TITANS = [sys.executable, "-m", "titanslab.cli"]
REFUSED = ("is being written by another process", "already holds")
SECONDS = 300


@dataclass(frozen=True)
class Work:
    """A command, and what must be equal after it was disturbed.

    Args:
        words: the command into a place.
        again: further words of a command that goes on.
        begun: whether there is something in the place to go on from.
        result: what is in the place at the end.
        seconds: the most seconds between the first file in the place and a kill.
    """

    words: Callable[[Path], list[object]]
    again: Callable[[Path], list[object]]
    begun: Callable[[Path], bool]
    result: Callable[[Path], Any]
    seconds: float
    stdin: str = ""


def works(files: Path) -> dict[str, Work]:
    """The commands by name."""
    model, text, recipe = files / valid.MODEL, files / "long.txt", files / valid.RECIPE
    train: list[object] = ["train", recipe, "--set", "training.steps=60", "--set", "training.save_every=5"]
    read: list[object] = ["read", text, "--model", model, "--piece-size", 256, "--save-every", 0]
    niah = ["evaluate", "niah", "--model", model, "--lengths", "2k", "--samples", 40, "--max-new-tokens", 2]
    chat: list[object] = ["chat", "--model", model, "--max-new-tokens", 4]

    def nothing(place: Path) -> list[object]:
        return []

    return {
        "train": Work(
            lambda place: [*train, "--output", place],
            lambda place: ["--resume"],
            lambda place: (place / "recipe.toml").exists(),
            lambda place: (losses(place), tensors(place / "model.safetensors")),
            4.0,
        ),
        "read": Work(
            lambda place: [*read, "--save", place],
            lambda place: ["--resume"],
            lambda place: place.exists() and not finished(place),
            tensors,
            3.0,
        ),
        "evaluate": Work(lambda place: [*niah, "--output", place], nothing, lambda place: True, answers_once, 4.0),
        "chat": Work(lambda place: [*chat, "--session", place], nothing, lambda place: True, turns, 2.0, "a\n" * 12),
    }


def tensors(file: Path) -> dict[str, Any]:
    """The tensors of a file as lists."""
    from safetensors.torch import load_file

    return {name: x.tolist() for name, x in load_file(file).items()}


def notes(file: Path) -> dict[str, Any]:
    """The notes of a memory file."""
    from titanslab.models.cache import TitansCache

    return TitansCache.header(file).notes


def finished(file: Path) -> bool:
    return bool(notes(file)["text"]["finished"])


def turns(file: Path) -> int:
    return int(notes(file)["turns"])


def answers_once(folder: Path) -> list[str]:
    """The answers of an evaluation; ValueError if one stands twice."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    found = {(line["task"], line["length"], line["index"]) for line in lines}
    if len(found) != len(lines):
        raise ValueError(f"{len(lines)} lines for {len(found)} samples")
    return answers(folder)


def start(words: list[object], stdin: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*TITANS, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(stdin)
        process.stdin.close()
    process.stdin = None
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and last line on stderr."""
    _, said = process.communicate(timeout=SECONDS)
    lines = [line for line in said.splitlines() if line.strip()]
    return process.returncode, lines[-1] if lines else ""


def killed(work: Work, place: Path, rng: random.Random, most: int) -> tuple[int, str]:
    """Kill a command at random moments, at most `most` times, and let it end; the number of kills, and a fault."""
    kills = 0
    while True:
        more = work.again(place) if work.begun(place) else []
        process = start([*work.words(place), *more], work.stdin)
        if kills < most:
            while process.poll() is None and not place.exists():
                time.sleep(0.005)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, work.seconds))
            if process.poll() is None:
                process.kill()
                kills += 1
                process.communicate()
                continue
        code, said = end(process)
        if place.is_file() and code == 2 and "holds no unfinished reading" in said:
            return kills, ""  # the kill before came after the last save
        return kills, "" if code == 0 else f"exit code {code}: {said}"


def leftovers(place: Path) -> list[str]:
    """Temporary files and locks beside a place or in it."""
    inside = place.rglob("*") if place.is_dir() else iter(())
    beside = (p for p in place.parent.iterdir() if p.name.startswith(f".{place.name}."))
    return [p.name for p in [*inside, *beside] if p.name.startswith(".") or p.name.endswith(".tmp")]


def raced(words: list[list[object]], place: Path, pause: float, stdin: str) -> str:
    """Start two commands in one place; returns a fault."""
    processes = []
    for command in words:
        processes.append(start(command, stdin))
        time.sleep(pause)
    ends = [end(process) for process in processes]
    if sorted(code for code, _ in ends) != [0, 2]:
        return f"exit codes and messages: {ends}"
    said = next(text for code, text in ends if code == 2)
    if not any(words in said for words in REFUSED) or str(place) not in said:
        return f"the refusal is {said!r}"
    return ""


def check(work: Work, place: Path, whole: Any) -> str:
    """The fault of what is in a place at the end, or ""."""
    try:
        same = work.result(place) == whole
    except (OSError, ValueError, KeyError) as error:
        return f"the result cannot be read: {error}"
    left = leftovers(place)
    return "" if same and not left else f"left behind: {left}" if same else "another result than the undisturbed one"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.races", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="kills in all, shared among train, read and evaluate")
    parser.add_argument("--races", type=int, default=10, help="pairs of commands, of six kinds in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills and the pauses")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="titans-races-"))
    os.environ["HF_HOME"] = str(folder / "hub")
    files, rng = prepare(folder), random.Random(given.seed)
    (files / "long.txt").write_text((files / valid.TEXT).read_text() * 20)
    known, wholes, faults = works(files), {}, 0
    print(f"{'what':34}{'kills':>7}  result", flush=True)
    for name, work in known.items():
        place = folder / f"whole-{name}"
        code, said = end(start(work.words(place), work.stdin))
        if code:
            raise RuntimeError(f"{name}: {said}")
        wholes[name] = work.result(place)

    def report(what: str, kills: int, fault: str) -> int:
        print(f"{what:34}{kills:7}  {fault or 'as undisturbed'}", flush=True)
        return bool(fault)

    kills, number = 0, 0
    while kills < given.kills:
        name = ("train", "read", "evaluate")[number % 3]
        work, place, number = known[name], folder / f"killed-{number}", number + 1
        count, fault = killed(work, place, rng, min(3, given.kills - kills))
        kills += count
        faults += report(f"{name}, killed", count, fault or check(work, place, wholes[name]))
        shutil.rmtree(place, ignore_errors=True)
    for number in range(given.races):
        name = ("train", "train and resume", "read", "chat", "evaluate", "tokens")[number % 6]
        work, place = known.get(name, known["train"]), folder / f"raced-{number}"
        words = [work.words(place)] * 2
        pause, fault = rng.choice([0.0, 0.05, 1.0]), ""
        if name == "train and resume":
            process = start(words[0])
            while process.poll() is None and not (place / "recipe.toml").exists():
                time.sleep(0.01)
            process.send_signal(signal.SIGSTOP)  # or it may end before the other has begun
            code, said = end(start([*words[0], "--resume"]))
            process.send_signal(signal.SIGCONT)
            fault = "" if code == 2 and REFUSED[0] in said else f"exit code {code}: {said}"
            code, said = end(process)
            fault = fault or (f"exit code {code}: {said}" if code else "")
        elif name == "tokens":
            shutil.rmtree(folder / "hub", ignore_errors=True)
            both = [start(work.words(folder / f"raced-{number}{part}")) for part in "ab"]
            ends = [end(process) for process in both]
            place = folder / f"raced-{number}a"
            fault = "" if ends[0][0] == ends[1][0] == 0 else f"exit codes and messages: {ends}"
            fault = fault or check(work, folder / f"raced-{number}b", wholes["train"])
        else:
            fault = raced(words, place, pause, work.stdin)
        faults += report(f"two at once: {name}", 0, fault or check(work, place, wholes.get(name, wholes["train"])))
    print(f"{kills} kills and {given.races} races, {faults} faults")
    shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
