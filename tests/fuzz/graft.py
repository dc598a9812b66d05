"""Folders of grafts and the memory files of grafted models."""

import json
import random
import shutil
from pathlib import Path

from . import valid
from .command import DONE, FAULT, Answer, Case, titans
from .damage import STRANGE, change_bytes, change_data, change_json, change_value, header_of, with_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ENTRIES = ["", "-1", "0", "1.5", "null", "[]", "{}", "9" * 5000, "\0"]


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """A graft with one change in its folder, or a memory file of it with one, for a verb that opens it."""
    if rng.random() < 0.4:
        return _memory(rng, files, folder)
    graft = folder / "graft"
    shutil.copytree(files / valid.GRAFT, graft, ignore=shutil.ignore_patterns("checkpoints"))
    name, refuse = rng.choice([_config, _config, _json, _bytes, _bit, _header, _missing])(rng, graft)
    verb = rng.choice(["generate", "read", "evaluate"])

    def run() -> Answer:
        words: dict[str, tuple[object, ...]] = {
            "generate": ("generate", "--model", graft, "--prompt", "The key", "--max-new-tokens", 2),
            "read": ("read", files / valid.TEXT, "--model", graft, "--save", folder / "new.memory"),
            "evaluate": ("evaluate", "graft", "--model", graft, "--data", files / valid.TEXT, "--max-tokens", 60),
        }
        return titans(*words[verb])

    return Case(f"{verb} graft: {name}", run, refuse)


def _memory(rng: random.Random, files: Path, folder: Path) -> Case:
    data = (files / valid.GRAFT_BOOK).read_bytes()
    name, data, refuse = rng.choice([_file_bytes, _file_bit, _file_entry, _file_header])(rng, data)
    file = folder / valid.GRAFT_BOOK
    file.write_bytes(data)

    def run() -> Answer:
        answer = titans("ask", "Who came?", "--memory", file, "--model", files / valid.GRAFT, "--max-new-tokens", 2)
        changed = answer.verdict != DONE and file.read_bytes() != data
        return Answer(FAULT, f"the file was changed; {answer.text}") if changed else answer

    return Case(f"ask graft memory: {name}", run, refuse)


def _file_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    return change_bytes(rng, data)


def _file_bit(rng: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    return "one bit of the data", change_data(rng, data), True


def _file_entry(rng: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    header = header_of(data)
    key = rng.choice(sorted(header["__metadata__"]))
    before, value = header["__metadata__"][key], rng.choice(ENTRIES)
    header["__metadata__"][key] = value
    return f"{key} = {value[:20]!r}", with_header(data, header), value != before


def _file_header(rng: random.Random, data: bytes) -> tuple[str, bytes, bool]:
    header = header_of(data)
    tensor = rng.choice([key for key in header if key != "__metadata__"])
    header[f"{tensor}.x"] = header.pop(tensor)
    return f"{tensor} renamed", with_header(data, header), True


def _config(rng: random.Random, graft: Path) -> tuple[str, bool]:
    file = graft / CONFIG
    config = json.loads(file.read_text())
    if rng.random() < 0.5:
        key = rng.choice(sorted(config))
        config[key] = rng.choice(STRANGE)
        name = f"{key} = {str(config[key])[:30]!r}"
    else:
        name = change_value(rng, config["graft"])
    file.write_text(json.dumps(config))
    return f"{CONFIG} {name}", False


def _json(rng: random.Random, graft: Path) -> tuple[str, bool]:
    file = graft / CONFIG
    name, data, broken = change_json(rng, file.read_text())
    file.write_bytes(data)
    return f"{CONFIG} {name}", broken


def _bytes(rng: random.Random, graft: Path) -> tuple[str, bool]:
    name, data, refuse = change_bytes(rng, (graft / WEIGHTS).read_bytes())
    (graft / WEIGHTS).write_bytes(data)
    return f"weights {name}", refuse


def _bit(rng: random.Random, graft: Path) -> tuple[str, bool]:
    (graft / WEIGHTS).write_bytes(change_data(rng, (graft / WEIGHTS).read_bytes()))
    return "weights one bit", True


def _header(rng: random.Random, graft: Path) -> tuple[str, bool]:
    data = (graft / WEIGHTS).read_bytes()
    header = header_of(data)
    tensor = rng.choice([key for key in header if key != "__metadata__"])
    header[f"{tensor}.x"] = header.pop(tensor)
    (graft / WEIGHTS).write_bytes(with_header(data, header))
    return f"weights {tensor} renamed", True


def _missing(rng: random.Random, graft: Path) -> tuple[str, bool]:
    file = graft / rng.choice([CONFIG, WEIGHTS])
    file.unlink()
    place = rng.choice(["", " is a folder", " is a link to nothing"])
    if place == " is a folder":
        file.mkdir()
    elif place:
        file.symlink_to("nothing")
    return f"{file.name}{place or ' is missing'}", True
