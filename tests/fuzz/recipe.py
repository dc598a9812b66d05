"""Recipes, and values given by --set."""

import json
import math
import random
import tomllib
from pathlib import Path
from typing import Any

from . import valid
from .command import DONE, FAULT, Answer, Case, titans
from .damage import STRANGE, nested
from .memory import not_finite

VALUES = [value for value in STRANGE if value is not None and value != "\ud800"]  # TOML has neither
SIZES = [10**6, 2**31, 2**62]
RATES = [1e-300, 0.9, 30.0, 1e4, 1e30]  # some of them can be trained with, and some end in values that are not finite
NUMBERS = [1e-310, 1e10, 1e308, -1.0, 0.0, float("inf"), float("nan")]
LISTS = [[1.0], [0.0, 0.0], [5.0, 1.0], [1e300, 1e308], [1.0, float("inf")]]
EXTREME: dict[str, dict[str, list[Any]]] = {
    "model": {
        **dict.fromkeys(
            ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "segment_len"], SIZES
        ),
        **dict.fromkeys(
            ["chunk_size", "memory_depth", "memory_expansion", "num_persistent_tokens", "conv_size"], SIZES
        ),
        **dict.fromkeys(
            ["memory_write_cost", "memory_theta_bias", "memory_chunk_coherence", "rms_norm_eps", "initializer_range"],
            NUMBERS,
        ),
        "memory_half_lives": [*LISTS, [1.0, 1e30], [0.1, 0.2]],
        "rope_parameters": [{"rope_theta": 0.0}, {"rope_theta": "a"}, {"rope_type": "yarn"}, {"rope_type": 5}, [1]],
    },
    "data": {"sequence_length": SIZES, "shuffle_buffer": SIZES},
    "training": {
        **dict.fromkeys(["learning_rate", "weight_decay", "gradient_clip", "beta1", "beta2"], NUMBERS + RATES),
        **dict.fromkeys(["batch_size", "accumulation", "warmup_steps", "log_every", "save_every", "seed"], SIZES),
    },
}
WORDS = {"schedule": ["linear", "none"], "optimizer": ["muon", "none"], "precision": ["bf16", "none"], "compile": [5]}
SETTINGS = [
    "", "=", "a=1", "training.steps", ".steps=1", "training.=1", "training.steps=nan", "training.steps=1e9999",
    "training.steps=[[", "data.train.a.b=1", "model.preset.a=1", "training.learning_rate=inf", "data.train=/dev/null",
    "data.train=/dev/zero", "data.tokenizer=/etc/passwd", "model.pretrained=/tmp", "training.report_to=['none']",
    f"training.steps={nested(3000)}", "training.seed=" + "9" * 40, "data.task_options.a.b=1",
]  # fmt: skip


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """A recipe with one change; what can be trained is trained for two steps."""
    text = (files / valid.RECIPE).read_text().replace("steps = 6", "steps = 2", 1)
    file = folder / "recipe.toml"
    more: tuple[object, ...] = ()
    name, data, refuse = rng.choice([_value, _value, _extreme, _extreme, _text, _task, _setting])(rng, text)
    if name.startswith("--set "):
        more = ("--set", data.decode())
        data = text.encode()
    file.write_bytes(data)
    run_folder = folder / "run"

    def run() -> Answer:
        answer = titans("train", file, *more, "--output", run_folder)
        if answer.verdict != DONE:
            return answer
        lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
        bad = [f"loss of step {line['step']}" for line in lines if not math.isfinite(line.get("loss", 0))]
        bad += not_finite(run_folder / "model.safetensors")
        if bad:
            return Answer(FAULT, f"not finite, and no error: {bad[:3]}")
        again = titans("train", "--output", run_folder, "--resume")
        return again if again.verdict == DONE else Answer(FAULT, f"recipe.toml of the run is refused: {again.text}")

    return Case(name, run, refuse)


def _value(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    tables = tomllib.loads(text)
    section = rng.choice(sorted(tables))
    known = [*tables[section], *EXTREME[section], *(WORDS if section == "training" else ())]
    unknown = rng.random() < 0.15
    key = rng.choice(["stepz", "a.b", "", "🦆", "__class__", "self"]) if unknown else rng.choice(known)
    value = rng.choice([*VALUES, *WORDS.get(key, [])])
    tables[section][key] = value
    return f"{section}.{key} = {str(value)[:30]!r}", toml(tables).encode(), unknown


def _extreme(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    """A value of the right type beyond reason."""
    tables = tomllib.loads(text)
    section = rng.choice(["model", "training", "training", "data"])
    key = rng.choice(sorted(EXTREME[section]))
    value = tables[section][key] = rng.choice(EXTREME[section][key])
    return f"{section}.{key} = {value}", toml(tables).encode(), isinstance(value, float) and not math.isfinite(value)


def _task(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    tables = tomllib.loads(text)
    del tables["data"]["train"]
    tables["data"]["task"] = rng.choice(["recall", "kv_recall", "niah", "babilong", "none", "", "../recall"])
    key = rng.choice(["length", "pairs", "keys", "seed", "haystack", "variant", "distance", "another"])
    tables["data"]["task_options"] = {key: rng.choice(VALUES)}
    value = str(tables["data"]["task_options"])[:50]
    return f"task {tables['data']['task']} {value}", toml(tables).encode(), False


def _setting(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    setting = rng.choice(SETTINGS)
    return f"--set {setting[:50]}", setting.encode(), "=" not in setting


def _text(rng: random.Random, text: str) -> tuple[str, bytes, bool]:
    data = text.encode()
    where = rng.randrange(len(data))
    changes: dict[str, tuple[bytes, bool]] = {
        "empty": (b"", True),
        "cut": (data[:where], False),
        "a byte": (data[:where] + bytes([rng.randrange(256)]) + data[where + 1 :], False),
        "zeros": (data + b"\0\0", True),
        "byte order mark": (b"\xef\xbb\xbf" + data, False),
        "UTF-16": (text.encode("utf-16"), True),
        "a table twice": (data + b"[training]\nsteps = 1\n", True),
        "nested": (data + f"a = {nested()}\n".encode(), True),
        "dotted": (data + b"a" + b".b" * 4000 + b" = 1\n", True),
        "a date": (data + b"save_every = 1979-05-27\n", True),
        "tables": (b"".join(b"[t%d]\n" % i for i in range(20_000)), True),
        "long": (data + b'a = "' + b"b" * 6_000_000 + b'"\n', True),
    }
    name = rng.choice(sorted(changes))
    return f"text {name}", *changes[name]


def toml(tables: dict[str, Any]) -> str:
    """Tables of simple values as TOML."""
    lines = []
    for section, table in tables.items():
        lines += [f"[{section}]", *(f"{json.dumps(key)} = {_literal(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan, inf and -inf are TOML
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, (x for x in value if x is not None)))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {_literal(part)}' for key, part in value.items())}}}"
    return json.dumps(value)
