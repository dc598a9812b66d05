"""The file of a `GraftCache`: its tensors, and in the header the model that wrote it. It holds no text."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from titanslab.documents import parse_json
from titanslab.graft.identity import adapter_hash, base_hash
from titanslab.graft.states import KINDS, StateLayer
from titanslab.graft.window import KNOWN, Slots
from titanslab.tensor_files import agrees, not_finite, read_tensors, write_tensors

if TYPE_CHECKING:
    from titanslab.graft.cache import GraftCache
    from titanslab.graft.handle import Graft

FORMAT, VERSION, NOUN = "titans-graft-cache", "1", "memory"
WAY_OUT = "read the text again, or restore the file from a copy"
COUNT = Annotated[int, Meta(ge=0, lt=1 << 40)]

# entry of the header -> its type
SCHEMA: dict[str, Any] = {
    "base": str,
    "adapter": str,
    "layers": list[int],
    "dtype": str,
    "tokens": COUNT,
    "rows": Annotated[int, Meta(ge=1, lt=1 << 31)],
    "learn": bool,
    "write_scale": Annotated[float, Meta(ge=0, le=1e30)],
    "dropped": bool,
    "bound": COUNT,
    "notes": dict[str, Any],
}


@dataclass(frozen=True)
class GraftCacheHeader:
    """The header of a file of a `GraftCache`.

    Args:
        base, adapter: hashes of the base model and of what was added to it.
        layers: the grafted layers.
        dtype: of keys and values.
        tokens: tokens of a row that were read, padding included.
        rows: number of rows.
        learn, write_scale: as in the cache.
        dropped, bound: as in `Slots`.
        notes: JSON values that `save` was given.
    """

    base: str
    adapter: str
    layers: list[int]
    dtype: str
    tokens: int
    rows: int
    learn: bool
    write_scale: float
    dropped: bool
    bound: int
    notes: dict[str, Any]


def save(cache: "GraftCache", path: str | os.PathLike[str], notes: dict[str, Any] | None) -> None:
    """Write a cache, see `GraftCache.save`."""
    if cache.columns == 0:
        raise ValueError("the cache is empty: let the model read some tokens before save()")
    if other := next((type(layer).__name__ for layer in cache.layers if type(layer) not in KNOWN), ""):
        raise ValueError(f"the cache of this base has layers of the kind {other}, which no file can hold")
    graft, tensors = cache.graft, cache.tensors()
    if name := not_finite(tensors):
        raise FloatingPointError(f"{path} was not written: the cache has numbers that are not finite in {name!r}")
    keys = next(t for name, t in tensors.items() if name.endswith(".keys"))
    header = GraftCacheHeader(
        base_hash(graft.decoder.body),
        adapter_hash(graft),
        list(graft.layers),
        str(keys.dtype).removeprefix("torch."),
        cache.columns,
        cache.rows,
        cache.learn,
        cache.write_scale,
        cache.slots.dropped,
        cache.slots.bound,
        notes or {},
    )
    try:
        metadata = {name: json.dumps(value, sort_keys=True) for name, value in vars(header).items()}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"notes must be JSON values, such as text, numbers, lists and dicts: {error}") from None
    parse_json(metadata["notes"], dict[str, Any], origin="notes", finite=False)
    write_tensors(path, tensors, metadata | {"format": FORMAT, "version": VERSION}, NOUN)


def read(path: str | os.PathLike[str], tensors: bool = True) -> tuple[GraftCacheHeader, dict[str, Tensor]]:
    """Header and tensors of a file, or {} without `tensors`; errors as in `GraftCache.load`."""
    path = Path(path)
    metadata, found = read_tensors(path, NOUN, WAY_OUT, tensors)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file but not one written by GraftCache.save")
    if metadata.get("version") != VERSION:
        raise ValueError(f"{path} has version {metadata.get('version')!r:.40}, this release reads {VERSION!r}")
    if not agrees(metadata, found if tensors else None):
        raise ValueError(f"{path} is damaged: its contents do not agree with its checksum; {WAY_OUT}")
    values = dict[str, Any]()
    for name, kind in SCHEMA.items():
        if name not in metadata:
            raise ValueError(f"{path} has a damaged header: {name} is missing; {WAY_OUT}")
        values[name] = parse_json(
            metadata[name], kind, origin=f"{path}: header: {name}", fix=WAY_OUT, finite=name != "notes"
        )
    return GraftCacheHeader(**values), found


def load(cache: "GraftCache", path: str | os.PathLike[str]) -> None:
    """Fill an empty cache from a file, see `GraftCache.load`."""
    header, tensors = read(path)
    graft = cache.graft
    _check_model(path, header, graft)
    if problem := _fault(tensors, header, graft):
        raise ValueError(f"{path} {problem}; {WAY_OUT}")
    like = next(graft.decoder.body.parameters())
    tensors = {name: t.to(like.device) for name, t in tensors.items()}
    cache.columns, cache.rows = header.tokens, header.rows
    cache.learn, cache.write_scale = header.learn, header.write_scale
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, StateLayer):
            layer.fill(_under(f"layers.{i}.", tensors), like.dtype)
            continue
        held: Any = layer
        keys, values = (tensors[f"layers.{i}.{name}"].to(like.dtype) for name in ("keys", "values"))
        held.lazy_initialization(keys, values)
        held.keys, held.values = keys, values
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = header.tokens
    for i in range(len(cache.memories)):
        mine = _under(f"memories.{i}.", tensors)
        cache.memories[i] = graft.memories[i].state_of(mine) if mine else None
    for name in Slots.tensors:
        setattr(cache.slots, name, tensors[f"slots.{name}"])
    cache.slots.dropped, cache.slots.bound = header.dropped, header.bound


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _check_model(path: str | os.PathLike[str], header: GraftCacheHeader, graft: "Graft") -> None:
    """ValueError if a file was written by another model."""
    if header.layers != list(graft.layers):
        raise ValueError(
            f"{path} is the memory of another graft: its layers are {header.layers}, those of this model "
            f"{list(graft.layers)}"
        )
    for name, theirs, mine in (
        ("base model", header.base, base_hash(graft.decoder.body)),
        ("adapter", header.adapter, adapter_hash(graft)),
    ):
        if theirs != mine:
            raise ValueError(f"{path} was written with another {name}: its hash is {theirs}, that of this one {mine}")


def _fault(tensors: dict[str, Tensor], header: GraftCacheHeader, graft: "Graft") -> str:
    """Why tensors are no cache of a graft, "" if they are one."""
    rows, body = header.rows, graft.decoder.body
    shapes: dict[str, tuple[int, ...]] = {}
    for i, memory in enumerate(graft.memories):
        if any(name.startswith(f"memories.{i}.") for name in tensors):
            state = memory.empty(rows).tensors()
            shapes |= {f"memories.{i}.{name}": tuple(t.shape) for name, t in state.items()}
    slots = [f"slots.{name}" for name in Slots.tensors]
    layers = graft.window.layers(body.config)
    held, states = list[str](), list[str]()
    for i, layer in enumerate(layers):
        if isinstance(layer, StateLayer):
            names = [f"layers.{i}.{kind}.{place}" for kind in KINDS for place in range(layer.number_of_states)]
            if not (found := [name for name in names if name in tensors]):
                return f"lacks the states of layer {i}"
            states += found
        else:
            held += [f"layers.{i}.{name}" for name in ("keys", "values")]
    if missing := next((name for name in (*slots, *held) if name not in tensors), ""):
        return f"lacks the tensor {missing!r}"
    if more := next((name for name in tensors if name not in (*slots, *held, *states, *shapes)), ""):
        return f"holds the tensor {more!r}, which its model has not"
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        fits = shape == shapes[name] if name in shapes else len(shape) == 4 and shape[0] == rows
        if name in states:
            fits = len(shape) > 1 and shape[0] == rows
        if name in slots:
            fits = tensor.dtype == torch.int64 and len(shape) in (1, 2) and shape[0] in (1, rows)
        elif not name.endswith(("offset", "count")) and not tensor.is_floating_point():
            return f"has {name!r} in {tensor.dtype}, and a floating-point dtype is needed"
        if not fits:
            return f"has {name!r} of shape {list(shape)}, which does not fit its model"
    count = tensors["slots.index"].shape[1]
    for i, layer in enumerate(layers):
        if isinstance(layer, (DynamicSlidingWindowLayer, StateLayer)):
            continue
        if tensors[f"layers.{i}.keys"].shape[2] != count:
            return f"has {tensors[f'layers.{i}.keys'].shape[2]} keys in layer {i}, and {count} slots"
    return f"has numbers that are not finite in {name!r}" if (name := not_finite(tensors)) else ""
