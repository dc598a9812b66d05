"""Model folders."""

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

from . import valid
from .command import Answer, Case, titans
from .damage import STRANGE, Pickle, change_bytes, change_json, change_value, header_of, with_header

WEIGHTS = "model.safetensors"
FIELDS = [
    "another",
    "head_dim",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "attn_implementation",
    "rope_parameters",
]


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """A folder of a model with one change, for a verb that opens a model."""
    model = folder / "model"
    shutil.copytree(files / valid.MODEL, model)
    name, refuse = rng.choice([_config, _config, _json, _json, _bytes, _lie, _index, _pickle, _missing, _code])(
        rng, model
    )
    verb = rng.choice(["generate", "generate", "read", "info", "perplexity", "niah"])
    if refuse and verb == "info":
        verb = "generate"  # info reads the config alone

    def run() -> Answer:
        words: dict[str, tuple[object, ...]] = {
            "generate": ("generate", "--model", model, "--prompt", "The key", "--max-new-tokens", 2),
            "read": ("read", files / valid.TEXT, "--model", model, "--save", folder / "new.memory"),
            "info": ("info", "--config", model),
            "perplexity": (
                "evaluate",
                "--model",
                model,
                "--data",
                files / valid.TEXT,
                "--context",
                64,
                "-o",
                folder / "p",
            ),
            "niah": (*valid.NIAH, "--model", model, "--output", folder / "niah"),
        }
        return titans(*words[verb])

    return Case(f"{verb}: {name}", run, refuse)


def _config(rng: random.Random, model: Path) -> tuple[str, bool]:
    file = model / "config.json"
    config = json.loads(file.read_text())
    key = rng.choice([*config, *FIELDS])
    config[key] = rng.choice(STRANGE)
    file.write_text(json.dumps(config))
    return f"config {key} = {str(config[key])[:30]!r}", False


def _json(rng: random.Random, model: Path) -> tuple[str, bool]:
    file = rng.choice(sorted(model.glob("*.json")))
    if rng.random() < 0.5:
        name, data, broken = change_json(rng, file.read_text())
        file.write_bytes(data)
        return f"{file.name} {name}", broken and file.name == "config.json"
    tree = json.loads(file.read_text())
    name = change_value(rng, tree)
    file.write_text(json.dumps(tree))
    return f"{file.name} {name}", False


def _bytes(rng: random.Random, model: Path) -> tuple[str, bool]:
    name, data, refuse = change_bytes(rng, (model / WEIGHTS).read_bytes())
    (model / WEIGHTS).write_bytes(data)
    return f"weights {name}", refuse


def _lie(rng: random.Random, model: Path) -> tuple[str, bool]:
    """A header that says something else about a tensor than the truth."""
    data = (model / WEIGHTS).read_bytes()
    header: dict[str, Any] = header_of(data)
    key = rng.choice([key for key in header if key != "__metadata__"])
    shape = header[key]["shape"]
    change = rng.choice(["dtype", "shape", "name", "gone"])
    if change == "dtype":
        header[key]["dtype"] = rng.choice(["I32", "U32"])
    elif change == "shape":
        header[key]["shape"] = rng.choice([[*shape, 1], [1, *shape], [*shape[:-1], shape[-1] * 2], [-1], "a"])
    else:
        value = header.pop(key)
        if change == "name":
            header[f"{key}.x"] = value
    (model / WEIGHTS).write_bytes(with_header(data, header))
    return f"weights {change} of {key}", True


def _index(rng: random.Random, model: Path) -> tuple[str, bool]:
    """An index of shards that names a file outside the folder, or none."""
    data = (model / WEIGHTS).read_bytes()
    outside = model.parent / "outside.safetensors"
    outside.write_bytes(data)
    (model / WEIGHTS).unlink()
    name: Any = rng.choice(
        [str(outside), "../outside.safetensors", "/etc/passwd", "gone.safetensors", "", ".", 5, None]
    )
    index = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(header_of(data), name)}
    index["weight_map"].pop("__metadata__", None)
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return f"shard {name!r}".replace(str(model.parent), ""), True


def _pickle(rng: random.Random, model: Path) -> tuple[str, bool]:
    data = pickle.dumps(Pickle(model.parent / "unpickled"))
    name = rng.choice([WEIGHTS, "pytorch_model.bin", "adapter_model.bin", "training_args.bin"])
    alone = rng.random() < 0.5
    if alone:
        (model / WEIGHTS).unlink()
    (model / name).write_bytes(data)
    if name.startswith("adapter"):
        (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    return f"a pickle as {name}{' alone' if alone else ''}", alone or name == WEIGHTS


def _missing(rng: random.Random, model: Path) -> tuple[str, bool]:
    file = rng.choice(sorted(model.iterdir()))
    file.unlink()
    place = rng.choice(["", " is a folder", " is a link to nothing"])
    if place == " is a folder":
        file.mkdir()
    elif place:
        file.symlink_to("nothing")
    return f"{file.name}{place or ' is missing'}", file.name in ("config.json", WEIGHTS)


def _code(rng: random.Random, model: Path) -> tuple[str, bool]:
    """Code that a config names."""
    (model / "own.py").write_text(f"import os\nos.mkdir({str(model.parent / 'unpickled')!r})\n")
    for file, names in (
        ("config.json", ("AutoConfig", "AutoModelForCausalLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        tree = json.loads((model / file).read_text())
        tree["auto_map"] = rng.choice([{name: "own.Class" for name in names}, "own.Class", 5])
        if file == "config.json" and rng.random() < 0.5:
            tree["model_type"] = rng.choice(["own", "llama", 5, None])
        (model / file).write_text(json.dumps(tree))
    return "code of its own", False
