"""Folders of interrupted runs, which are resumed."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from . import valid
from .command import DONE, FAULT, Answer, Case, titans
from .damage import STRANGE, Pickle, change_bytes, change_data, change_json, change_value, nested

STATES = ["trainer_state.json", "optimizer.json", "scheduler.json", "random_state_0.json", "config.json"]
TENSORS = ["model.safetensors", "optimizer.safetensors"]
PICKLES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt", "pytorch_model.bin"]


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """An interrupted run with one change, which is resumed.

    A change that the marker of the checkpoint tells of must not change a loss: the run goes on from the checkpoint
    before. Where the marker was written again after the change, it must not fail unexpectedly.
    """
    run_folder = folder / "run"
    shutil.copytree(files / valid.HALF, run_folder)
    last = run_folder / "checkpoints" / "checkpoint-4"
    name, agree = rng.choice([_state, _state, _tensors, _tensors, _pickles, _marker, _log, _place])(rng, last)
    if agree is None:
        from titanslab.runs.checkpoints import mark_complete

        agree = rng.random() < 0.5
        if not agree:
            mark_complete(last)
            name += ", marked again"

    def run() -> Answer:
        answer = titans("train", "--output", run_folder, "--resume")
        if answer.verdict != DONE or not agree:
            return answer
        before, now = losses(files / valid.RUN), losses(run_folder)
        return (
            answer if before == now else Answer(FAULT, f"other losses: {len(now)} lines, {now[-2:]} for {before[-2:]}")
        )

    return Case(name, run)


def losses(run_folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each line of the metrics."""
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def _state(rng: random.Random, last: Path) -> tuple[str, bool | None]:
    file = last / rng.choice(STATES)
    if rng.random() < 0.4:
        name, data, _ = change_json(rng, file.read_text())
        file.write_bytes(data)
        return f"{file.name} {name}", None
    tree = json.loads(file.read_text())
    if file.name == "trainer_state.json" and rng.random() < 0.5:
        key = rng.choice(["global_step", "epoch", "max_steps", "num_input_tokens_seen", "log_history", "save_steps"])
        tree[key] = rng.choice(STRANGE)
        name = f"{key} = {str(tree[key])[:20]!r}"
    else:
        name = change_value(rng, tree)
    file.write_text(json.dumps(tree))
    return f"{file.name} {name}", None


def _tensors(rng: random.Random, last: Path) -> tuple[str, bool | None]:
    file = last / rng.choice(TENSORS)
    data = file.read_bytes()
    name, changed, _ = change_bytes(rng, data)
    if rng.random() < 0.3:
        name, changed = "one bit of the data", change_data(rng, data)
    file.write_bytes(changed)
    return f"{file.name} {name}", None


def _pickles(rng: random.Random, last: Path) -> tuple[str, bool | None]:
    names = rng.sample([*PICKLES, *TENSORS], 2)
    for name in names:
        (last / name).write_bytes(pickle.dumps(Pickle(last.parents[2] / "unpickled")))
    return f"pickles as {', '.join(names)}", None


def _marker(rng: random.Random, last: Path) -> tuple[str, bool | None]:
    file = last / "complete.json"
    change = rng.choice(["gone", "text", "value"])
    name = ""
    if change == "gone":
        file.unlink()
    elif change == "text":
        name, data, _ = change_json(rng, file.read_text())
        file.write_bytes(data)
    else:
        tree = json.loads(file.read_text())
        name = change_value(rng, tree)
        file.write_text(json.dumps(tree))
    return f"marker {change} {name}", True


def _log(rng: random.Random, last: Path) -> tuple[str, bool | None]:
    """The log of losses; the steps that are trained again are the same whatever it holds."""
    file = last.parents[1] / "metrics.jsonl"
    data = file.read_bytes()
    changes: dict[str, tuple[bytes, bool]] = {
        "last line cut": (data[: -rng.randrange(2, 30)], True),
        "noise at the end": (data + b"\xff\xfe\0\n", True),
        "nested": (data + nested().encode() + b"\n", True),
        "a list": (data + b"[]\n", True),
        "no step": (data + b'{"loss": 1}\n', True),
        "a step of text": (data + b'{"step": "a"}\n', True),
        "empty": (b"", False),
        "cut": (data[: rng.randrange(len(data))], False),
    }
    name = rng.choice(sorted(changes))
    file.write_bytes(changes[name][0])
    return f"metrics {name}", changes[name][1]


def _place(rng: random.Random, last: Path) -> tuple[str, bool | None]:
    """Files in the run folder that do not belong there, or are gone."""
    folder = last.parents[1]
    results = ["", "{}", "[]", "null", '{"steps": 1}', '{"loss": NaN, "steps": 6}', nested()]
    changes: dict[str, tuple[Callable[[], object], bool]] = {
        "result.json": (lambda: (folder / "result.json").write_text(rng.choice(results)), False),
        "recipe.toml cut": (lambda: (folder / "recipe.toml").write_bytes(_cut(rng, folder / "recipe.toml")), False),
        "versions.json cut": (
            lambda: (folder / "versions.json").write_bytes(_cut(rng, folder / "versions.json")),
            True,
        ),
        "a file gone": (
            lambda: rng.choice(sorted(p for p in last.iterdir() if p.name != "complete.json")).unlink(),
            True,
        ),
        "half a model": (lambda: shutil.copytree(last, folder / ".final"), True),
        "a checkpoint of 10^20": (lambda: shutil.copytree(last, last.parent / f"checkpoint-1{'0' * 20}"), False),
        "a checkpoint of x": (lambda: shutil.copytree(last, last.parent / "checkpoint-x"), True),
    }
    name = rng.choice(sorted(changes))
    changes[name][0]()
    return name, changes[name][1]


def _cut(rng: random.Random, file: Path) -> bytes:
    data = file.read_bytes()
    return data[: rng.randrange(len(data))]
