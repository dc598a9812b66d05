"""The file of a `TitansCache`: safetensors with the model's identity in the header, written whole or not at all."""

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor, nn

from titanslab.documents import parse_json
from titanslab.memory.config import NOT_IN_THE_STATE
from titanslab.models.cache_checks import MOST_TOKENS
from titanslab.models.config import LATER_FIELDS, MEMORY_OPTIONS, TitansConfig
from titanslab.tensor_files import CHECKSUM, agrees, read_tensors, weights_hash, write_tensors

FORMAT = "titans-cache"
VERSION = "2"
WAY_OUT = "read the text again, or restore the file from a copy"

# Fields that decide the meaning of a state, besides a memory's options. Token ids, dtype and the rest may differ.
# fmt: off
IDENTITY = (
    "variant", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "attention_conv_size", "segment_len", "window_size", "num_persistent_tokens", "gate_type", "rope_parameters",
    "rms_norm_eps", *(name for name, option in MEMORY_OPTIONS.items() if option not in NOT_IN_THE_STATE),
)
# fmt: on

# field of the header -> its type, and its value in a file without it
SCHEMA: dict[str, tuple[Any, Any]] = {
    "config": (dict[str, Any], None),
    "columns": (Annotated[int, Meta(ge=0, lt=MOST_TOKENS)], None),
    "learn": (bool, True),
    "write_scale": (Annotated[float, Meta(ge=0, le=1e30)], 1.0),
    "notes": (dict[str, Any], {}),
}


@dataclass(frozen=True)
class CacheHeader:
    """The header of a cache file.

    Args:
        config: the fields of its model's config on which a cache depends (`IDENTITY`).
        weights: fingerprint of the model's weights, "" if it is not known.
        columns: tokens read, padding included.
        learn, write_scale: as in `TitansCache`.
        notes: values that `TitansCache.save` was given.
    """

    config: dict[str, Any]
    weights: str
    columns: int
    learn: bool
    write_scale: float
    notes: dict[str, Any]


def config_identity(config: TitansConfig) -> dict[str, Any]:
    """The fields of a config that a cache depends on, as JSON values."""
    memory = {name: getattr(config.memory, option) for name, option in MEMORY_OPTIONS.items()}
    values = {name: memory[name] if name in memory else getattr(config, name) for name in IDENTITY}
    return json.loads(json.dumps(values))


def weights_fingerprint(model: nn.Module) -> str:
    """A short hash of the weights a cache depends on: names, shapes and up to 256 evenly spaced values of each.

    Values are rounded to bfloat16, so that a model has the same hash in every precision. The head of a language model
    is left out, so a base model can read the caches of its language model.
    """
    return weights_hash(getattr(model, "base_model", model).named_parameters())


def differences(stored: dict[str, Any], config: TitansConfig) -> str:
    """The fields in which a stored identity and a config differ, in words; "" if they agree."""
    mine = config_identity(config)
    stored = LATER_FIELDS | stored
    different = [name for name in IDENTITY if stored.get(name) != mine[name]]
    facts = ", ".join(f"{n} {stored.get(n)!r} there and {mine[n]!r} here" for n in different[:3])
    return facts + (f" and {len(different) - 3} more" if len(different) > 3 else "")


def write_file(path: str | os.PathLike[str], tensors: dict[str, Tensor], header: CacheHeader) -> None:
    """Write a cache file; a reader finds the old or the new one, see `write_whole`.

    A symbolic link stays: the file it points to is replaced. A `DocumentError` says which note no file can hold.
    """
    try:
        metadata = {name: json.dumps(value, sort_keys=True) for name, value in vars(header).items()}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"notes must be JSON values, such as text, numbers, lists and dicts: {error}") from None
    parse_json(metadata["notes"], dict[str, Any], origin="notes", finite=False)
    metadata |= {"format": FORMAT, "version": VERSION, "weights": header.weights}
    write_tensors(path, tensors, metadata, "cache")


def read_file(path: str | os.PathLike[str], tensors: bool = True) -> tuple[CacheHeader, dict[str, Tensor]]:
    """Header of a cache file and its tensors, or {} without `tensors`.

    With `tensors`, a file without a checksum gives a warning.

    Raises:
        FileNotFoundError, ValueError: no such file; not a cache, cut short, damaged, or of another release.
    """
    path = Path(path)
    metadata, found = read_tensors(path, "cache", WAY_OUT, tensors)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file but not a cache written by TitansCache.save")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} has cache format version {metadata.get('version')!r:.40}, this release reads {VERSION!r}; "
            "load it with the release that wrote it"
        )
    _check_checksum(path, metadata, found if tensors else None)
    return _header(path, metadata), found


def _check_checksum(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor] | None) -> None:
    """ValueError if header or tensors are not those that were saved; a warning where there are no checksums."""
    if CHECKSUM not in metadata:
        if tensors is not None:
            warnings.warn(
                f"{path} carries no checksum: an earlier release wrote it; saved again, it has one", stacklevel=4
            )
        return
    if not agrees(metadata, tensors):
        raise ValueError(f"{path} is damaged: its contents do not agree with its checksum; {WAY_OUT}")


def _header(path: Path, metadata: dict[str, str]) -> CacheHeader:
    """The header in a file's metadata; ValueError for one that is damaged."""
    origin, values = f"{path}: header", dict[str, Any]()
    for name, (kind, otherwise) in SCHEMA.items():
        text = metadata.get(name)
        if text is None and otherwise is None:
            raise ValueError(f"{path} has a damaged header: {name} is missing; {WAY_OUT}")
        if text is None:
            values[name] = otherwise
        else:
            place, finite = f"{origin}: {name}", name != "notes"
            values[name] = parse_json(text, kind, origin=place, fix=WAY_OUT, finite=finite)
    if "weights" not in metadata:
        raise ValueError(f"{path} has a damaged header: weights is missing; {WAY_OUT}")
    if unknown := [name for name in values["config"] if name not in IDENTITY]:
        raise ValueError(f"{path} has a damaged header: its config has the unknown key {unknown[0]!r:.80}; {WAY_OUT}")
    return CacheHeader(weights=metadata["weights"], **values)
