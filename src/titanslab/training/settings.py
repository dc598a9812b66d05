"""Typed settings: tables of TOML become dataclasses with checked types, and are written back as TOML."""

import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from titanslab.documents import FormatError, checked, parse_toml
from titanslab.models.config import nearest

MOST = (1 << 31) - 1  # of counts: torch's kernels index with 32 bits
Count = Annotated[int, Meta(ge=1, le=MOST)]
CountOrZero = Annotated[int, Meta(ge=0, le=MOST)]

# Names that other programs have for keys of a recipe, too far from ours to be found by their letters.
OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "iterations": "steps",
    "grad_clip": "gradient_clip",
    "max_grad_norm": "gradient_clip",
    "grad_accum": "accumulation",
    "gradient_accumulation_steps": "accumulation",
    "total_batch_size": "global_batch_size",
    "activation_checkpointing": "gradient_checkpointing",
    "fsdp": "sharding",
    "seq_len": "sequence_length",
    "max_length": "sequence_length",
    "context_length": "sequence_length",
    "block_size": "sequence_length",
    "dtype": "precision",
    "bf16": "precision",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
}


def build_settings(
    kind: type, table: dict[str, Any], section: str, origin: str, origins: Mapping[str, str] | None = None
) -> Any:
    """Make the dataclass `kind` from `table`; ValueError names an unknown key, or one whose value has a wrong type or
    is outside the bounds of its annotation.

    `origin` is named in errors; `origins` has another one for some keys.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {}
    for key, value in table.items():
        where = (origins or {}).get(key, origin)
        if key not in hints:
            raise unknown_key(key, section, tuple(hints), where)
        values[key] = checked(value, hints[key], f"{where}: {section}.{key}")
    return kind(**values)


def unknown_key(key: str, section: str, known: tuple[str, ...], origin: str) -> ValueError:
    """The error for a key that a section does not have, with the nearest one or else the list of all."""
    other = OTHER_NAMES.get(key.lower())
    hint = f"; did you mean {other!r}?" if other in known else nearest(key, known)
    return ValueError(f"{origin}: unknown key {key!r} in [{section}]{hint or '; its keys: ' + ', '.join(known)}")


def read_assignment(text: str) -> tuple[str, str, Any]:
    """Split "section.key=value"; a value that is not TOML is plain text."""
    left, equals, right = text.partition("=")
    section, dot, key = left.strip().partition(".")
    if not equals or not dot or not section or not key:
        raise ValueError(f"--set {text!r} is not of the form section.key=value, such as training.learning_rate=1e-3")
    try:
        value = parse_toml(f"value = {right.strip()}", origin=f"--set {left.strip()}")["value"]
    except FormatError:
        value = right
    return section, key, value


def toml_text(sections: dict[str, dict[str, Any]]) -> str:
    """Sections of plain values as TOML; keys with the value None are left out."""
    parts = [
        [f"[{name}]\n", *(f"{key} = {_toml_value(value)}\n" for key, value in section.items() if value is not None)]
        for name, section in sections.items()
    ]
    return "\n".join(map("".join, parts))


def _toml_value(value: Any) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    raise ValueError(f"a recipe cannot hold a {type(value).__name__}: {value!r}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError naming the key and the nearest allowed value, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}{nearest(value, allowed)}")
