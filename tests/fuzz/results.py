"""Folders of evaluations, which are continued."""

import json
import random
import shutil
from pathlib import Path

from . import valid
from .command import DONE, FAULT, Answer, Case, titans
from .damage import change_json, change_value, nested


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """An evaluation with one change; the same command must give the same answers, or refuse."""
    output = folder / "niah"
    shutil.copytree(files / valid.ANSWERS, output)
    name, same = rng.choice([_cut, _line, _line, _value, _settings, _samples, _rest])(rng, output)

    def run() -> Answer:
        answer = titans(*valid.NIAH, "--model", files / valid.MODEL, "--output", output)
        if answer.verdict == DONE and same and answers(output) != answers(files / valid.ANSWERS):
            return Answer(FAULT, "the answers are not those of before")
        return answer

    return Case(name, run)


def answers(output: Path) -> list[str]:
    """The lines of the results, in an order of their own, each once."""
    lines = map(json.loads, (output / "results.jsonl").read_text().splitlines())
    kept = ("task", "length", "index", "target", "output", "scores")
    return sorted({json.dumps([line[key] for key in kept]) for line in lines})


def _cut(rng: random.Random, output: Path) -> tuple[str, bool]:
    file = output / "results.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])
    return "results cut", True


def _line(rng: random.Random, output: Path) -> tuple[str, bool]:
    file = output / "results.jsonl"
    lines = file.read_bytes().splitlines()
    where = rng.randrange(len(lines))
    name = rng.choice(["gone", "twice", "order", "half", "empty", "a list", "nested", "no UTF-8", "zeros"])
    if name == "gone":
        del lines[where]
    elif name == "twice":
        lines.append(lines[where])
    elif name == "order":
        rng.shuffle(lines)
    else:
        kinds = {"half": lines[where][:30], "empty": b"", "a list": b"[]", "no UTF-8": b"\xff", "zeros": bytes(50)}
        lines[where] = kinds.get(name, nested().encode())
    file.write_bytes(b"\n".join(lines) + b"\n")
    return f"results line {where} {name}", True


def _value(rng: random.Random, output: Path) -> tuple[str, bool]:
    file = output / "results.jsonl"
    lines = file.read_text().splitlines()
    where = rng.randrange(len(lines))
    line = json.loads(lines[where])
    name = change_value(rng, line)
    lines[where] = json.dumps(line)
    file.write_text("\n".join(lines) + "\n")
    return f"results line {where}{name}", False


def _settings(rng: random.Random, output: Path) -> tuple[str, bool]:
    file = output / "settings.json"
    if rng.random() < 0.5:
        name, data, _ = change_json(rng, file.read_text())
        file.write_bytes(data)
        return f"settings {name}", True
    tree = json.loads(file.read_text())
    name = change_value(rng, tree)
    file.write_text(json.dumps(tree))
    return f"settings{name}", True


def _samples(rng: random.Random, output: Path) -> tuple[str, bool]:
    """Samples that are read again because no answer is there."""
    (output / "results.jsonl").write_bytes(b"")
    file = rng.choice(sorted((output / "samples").iterdir()))
    data = file.read_bytes()
    if rng.random() < 0.5:
        file.write_bytes(rng.choice([b"", data[: rng.randrange(len(data))], bytes(99), b"null\n", b"{}\n", b"\xff\n"]))
        return "samples cut", True
    lines = data.splitlines()
    sample = json.loads(lines[0])
    name = change_value(rng, sample)
    file.write_bytes(b"\n".join([json.dumps(sample).encode(), *lines[1:]]) + b"\n")
    return f"samples{name[:60]}", False


def _rest(rng: random.Random, output: Path) -> tuple[str, bool]:
    name = rng.choice(["summary", "no summary", "no settings", "results are a folder", "a lock"])
    if name == "summary":
        (output / "summary.json").write_text("{")
    elif name == "no summary":
        (output / "summary.json").unlink()
    elif name == "no settings":
        (output / "settings.json").unlink()
    elif name == "results are a folder":
        (output / "results.jsonl").unlink()
        (output / "results.jsonl").mkdir()
        return name, False
    else:
        (output.parent / ".niah.lock").write_text("123\n")
    return name, True
