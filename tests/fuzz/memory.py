"""Memory files and sessions."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

from . import valid
from .command import DONE, FAULT, Answer, Case, titans
from .damage import STRANGE, Pickle, change_bytes, change_data, change_value, header_of, nested, with_header

CHECKSUM = "checksum"  # entry of the metadata, without which a file is one of an earlier release
ENTRIES = ["", "-1", "0", "2", "1.5", "NaN", "Infinity", "1e400", "null", "[]", "{}", '"a"', "9" * 5000, "\0", nested()]
NOTES = ["start", "tokens", "path", "bytes", "finished", "learn", "write_scale"]


def make(rng: random.Random, files: Path, folder: Path) -> Case:
    """A memory file with one change, for a verb that reads such a file."""
    source = rng.choice([valid.BOOK, valid.BOOK, valid.HALF_BOOK, valid.TALK])
    data = (files / source).read_bytes()
    changes = [_bytes, _bit, _entry, _config, _notes, _header, _tensor, _tensor, _other]
    name, data, refuse = rng.choice(changes)(rng, data, folder)
    file = folder / source
    file.write_bytes(data)
    model = ("--model", files / valid.MODEL) if rng.random() < 0.3 else ()
    verb = rng.choice(VERBS[source])
    if verb == "ask" and " notes" in name:
        refuse = False  # an answer does not depend on them

    def run() -> Answer:
        new = folder / "new.memory"
        answer = titans(*COMMANDS[verb](files, file, new), *model, stdin="one\n" if verb.startswith("chat") else "")
        if answer.verdict != DONE:
            return answer if file.read_bytes() == data else Answer(FAULT, f"the file was changed; {answer.text}")
        bad = [f"{path.name}: {key}" for path in (file, new) if path.exists() for key in not_finite(path)]
        return Answer(FAULT, f"not finite, and no error: {bad[:3]}") if bad else answer

    return Case(f"{source} {verb}{' --model' if model else ''}: {name}", run, refuse)


VERBS = {
    valid.BOOK: ["ask", "from", "chat from", "inspect"],
    valid.HALF_BOOK: ["resume", "resume", "ask"],
    valid.TALK: ["chat", "chat", "ask"],
}
COMMANDS: dict[str, Any] = {
    "ask": lambda files, file, new: ("ask", "Who came?", "--memory", file, "--max-new-tokens", 2),
    "from": lambda files, file, new: ("read", files / valid.TEXT, "--from", file, "--save", new),
    "resume": lambda files, file, new: ("read", files / valid.TEXT, "--save", file, "--resume"),
    "chat": lambda files, file, new: ("chat", "--session", file, "--max-new-tokens", 2),
    "chat from": lambda files, file, new: ("chat", "--session", new, "--from", file),
    "inspect": lambda files, file, new: ("inspect", files / valid.TEXT, "--memory", file, "--output", new.parent / "p"),
}


def not_finite(file: Path) -> list[str]:
    """Names of the tensors of a file that hold a value that is not finite."""
    from safetensors.torch import load_file

    return [name for name, x in load_file(file).items() if x.is_floating_point() and not x.isfinite().all()]


def _bytes(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    return change_bytes(rng, data)


def _bit(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    return "one bit of the data", change_data(rng, data), True


def _meta(rng: random.Random, data: bytes, change: Any) -> tuple[bytes, bool]:
    """The file after `change(metadata)`, as of today or without a checksum; whether a checksum tells."""
    header = header_of(data)
    metadata = header["__metadata__"]
    before = dict(metadata)
    change(metadata)
    tells = CHECKSUM in metadata and rng.random() < 0.4 and metadata != before
    if not tells:
        metadata.pop(CHECKSUM, None)
    return with_header(data, header), tells


def _entry(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    key = rng.choice(sorted(header_of(data)["__metadata__"]))
    value = rng.choice([*ENTRIES, None, 5, ["a"]])
    allowed = {"format": (), "version": ("2",), "weights": ("",)}  # "" = it is not known which weights
    false = key in allowed and value not in allowed[key]

    def change(metadata: dict[str, Any]) -> None:
        metadata[key] = value

    data, tells = _meta(rng, data, change)
    return f"{key} = {str(value)[:20]!r}", data, false or (tells and key != CHECKSUM)


def _config(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    words = [""]

    def change(metadata: dict[str, Any]) -> None:
        config = json.loads(metadata["config"])
        words[0] = change_value(rng, config)
        metadata["config"] = json.dumps(config)

    data, tells = _meta(rng, data, change)
    return f"config{words[0]}", data, tells


def _notes(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    notes = json.loads(header_of(data)["__metadata__"]["notes"])
    key = rng.choice(["turns", "model", "text", "manner"]) if rng.random() < 0.3 else rng.choice(NOTES)
    value = rng.choice([*STRANGE, -3, 10])
    if key in NOTES and "text" in notes:
        notes["text"][key] = value
    else:
        notes[key] = value
    wrong = key in ("start", "tokens") and not (isinstance(value, int) and value >= 0)

    def change(metadata: dict[str, Any]) -> None:
        metadata["notes"] = json.dumps(notes)

    data, tells = _meta(rng, data, change)
    refuse = tells or (wrong and not notes.get("text", {"finished": True}).get("finished", True))
    return f" notes {key} = {str(value)[:20]!r}", data, refuse


def _header(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    header = header_of(data)
    tensor = rng.choice([key for key in header if key != "__metadata__"])
    part = rng.choice(["dtype", "shape", "data_offsets"])
    value = rng.choice(
        {
            "dtype": ["F64", "I8", "BOOL", "F8_E4M3", "none", 5, None, "I32"],
            "shape": [[], [0], [-1], [2**62, 2**62], "a", [1.5], None, [1, *header[tensor]["shape"]]],
            "data_offsets": [[0, 0], [-1, 4], [0, 10**12], [8, 0], "a", [0], None],
        }[part]
    )
    same = header[tensor][part] == value
    header[tensor][part] = value
    raw = nested().encode() if rng.random() < 0.05 else None
    return f"header {tensor}.{part} = {value}", with_header(data, header, raw), not same and value != [0, 0]


def _tensor(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    """Tensors changed as values, in a file that is whole and as of an earlier release, without a checksum."""
    import torch
    from safetensors.torch import load, save

    tensors, metadata = load(data), header_of(data)["__metadata__"]
    metadata.pop(CHECKSUM, None)
    key = rng.choice(sorted(key for key in tensors if tensors[key].numel()))
    old = tensors[key]
    change = rng.choice(["gone", "renamed", "dtype", "shorter", "rows", "nan", "minus", "vast", "more", "flat"])
    refuse = True
    if change == "gone":
        del tensors[key]
        refuse = key != "document"
    elif change == "renamed":
        tensors[f"{key}0"] = tensors.pop(key)
    elif change == "dtype":
        kinds = [torch.int16, torch.bool, torch.uint8, torch.complex64]
        tensors[key] = old.to(rng.choice([kind for kind in kinds if kind != old.dtype]))
    elif change == "shorter":
        dim = rng.randrange(old.dim())
        tensors[key] = old.narrow(dim, 0, old.shape[dim] - 1).contiguous()
    elif change == "rows":
        count = rng.choice([0, 2])
        tensors = {name: torch.cat([x] * count) if count else x[:0].clone() for name, x in tensors.items()}
    elif change == "nan":
        key = rng.choice([name for name, x in tensors.items() if x.is_floating_point() and x.numel()])
        tensors[key] = tensors[key].clone()
        tensors[key].view(-1)[rng.randrange(tensors[key].numel())] = rng.choice([float("nan"), float("inf")])
    elif change in ("minus", "vast"):
        key = rng.choice([name for name, x in tensors.items() if not x.is_floating_point() and x.numel()])
        kind = tensors[key].dtype
        value = (-5 if change == "minus" else 2**40) if kind == torch.int64 else 1
        tensors[key] = torch.full_like(tensors[key], value)
        refuse = kind == torch.int64 and key != "document"
    elif change == "more":
        tensors["another"] = torch.zeros(2)
    else:
        tensors[key] = old.reshape(-1).clone()
        refuse = old.dim() > 1
    return f"tensor {key} {change}", save(tensors, metadata), refuse


def _other(rng: random.Random, data: bytes, folder: Path) -> tuple[str, bytes, bool]:
    import torch
    from safetensors.torch import save

    others = {
        "a pickle": pickle.dumps(Pickle(folder / "unpickled")),
        "an archive": b"PK\x03\x04" + rng.randbytes(200),
        "text": b"{}",
        "other tensors": save({"a": torch.zeros(2)}),
        "no tensors": save({}, {**header_of(data)["__metadata__"], CHECKSUM: "0"}),
    }
    name = rng.choice(sorted(others))
    return name, others[name], True
