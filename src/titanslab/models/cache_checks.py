"""The tensors of a cache are checked against the config of a model before one of them is used."""

from collections.abc import Mapping

import torch
from torch import Tensor

from titanslab.models.config import TitansConfig
from titanslab.tensor_files import not_finite

MOST_TOKENS = 1 << 40  # a counter beyond it is damage: reading so many tokens takes years
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def fault(tensors: Mapping[str, Tensor], config: TitansConfig) -> str:
    """Why tensors, by the names that `TitansCache.tensors` gives them, are no cache of a model; "" if they are one.

    Names, dtypes, shapes, the range of the counters and finiteness are checked.
    """
    position = tensors.get("position")
    if position is None:
        return "lacks the tensor 'position'"
    if position.dim() != 1 or position.numel() == 0:
        return f"has 'position' of shape {list(position.shape)}, and [rows] is needed"
    if wrong := _wrong_dtypes(tensors, {}, {"position": MOST_TOKENS}):
        return wrong
    rows = position.shape[0]
    counters = {"position": MOST_TOKENS} | ({"document": 0} if "document" in tensors else {})
    shapes: dict[str, tuple[int, ...]] = {name: (rows,) for name in counters}
    groups: dict[str, str] = {}  # tensor -> the group in which all have one dtype
    past = 0
    if config.variant != "lmm":
        first = tensors.get("layers.0.keys")
        past = _slots(config, int(position.max()), first.shape[2] if first is not None and first.dim() == 4 else 0)
    for layer in range(config.num_hidden_layers):
        for name, (group, shape) in _parts(config, past).items():
            full = f"layers.{layer}.{name}"
            shapes[full] = (rows, *shape)
            if group:
                groups[full] = group
            else:
                counters[full] = config.memory.chunk_size
    return (
        _wrong_names(tensors, shapes)
        or _wrong_shapes(tensors, shapes)
        or _wrong_dtypes(tensors, groups, counters)
        or _wrong_counters(tensors, counters)
        or (f"has numbers that are not finite in {name!r}" if (name := not_finite(tensors)) else "")
    )


def _slots(config: TitansConfig, position: int, found: int) -> int:
    """Slots of attention's keys and values; with full attention those `found`, at least one for each token."""
    prefix = config.num_persistent_tokens
    if config.variant == "mac":
        return prefix + 2 * config.segment_len
    if config.window_size is not None:
        return prefix + config.window_size - 1
    return max(found, prefix + max(0, position))


def _parts(config: TitansConfig, slots: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors of one block: name -> (group of its dtype, shape after the rows); a counter has no group."""
    parts: dict[str, tuple[str, tuple[int, ...]]] = {}
    memory, heads = config.memory, config.num_attention_heads
    if config.variant != "attention":
        width = memory.width(config.hidden_size)
        names = ["memory.memory.weights", "memory.memory.momentum", "memory.memory.chunk_weights"]
        names += ["read_weights"] if config.variant == "mac" else []
        for name in names:
            for i, pair in enumerate(memory.network(width).widths(width)):
                parts[f"{name}.{i}"] = ("memory", (memory.num_heads, *pair))
        parts["memory.memory.offset"] = ("", ())
        tail = (memory.conv_size - 1, memory.num_heads * width)
        parts |= {f"memory.conv.{name}": ("tails", tail) for name in ("q", "k", "v", "read")}
    if config.variant != "lmm":
        shape = (heads, slots, config.hidden_size // heads)
        parts |= {"keys": ("attention", shape), "values": ("attention", shape)}
    if config.attention_conv_size > 1:
        tail = (config.attention_conv_size - 1, config.hidden_size)
        parts |= {f"conv.{name}": ("tails", tail) for name in "qkv"}
    return parts


def _wrong_names(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    missing, more = [n for n in shapes if n not in tensors], [n for n in tensors if n not in shapes]
    if missing:
        return f"lacks the tensor {missing[0]!r}"
    return f"holds the tensor {more[0]!r}, which its model has not" if more else ""


def _wrong_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            return f"has {name!r} of shape {list(tensors[name].shape)}, and its model needs {list(shape)}"
    return ""


def _wrong_dtypes(tensors: Mapping[str, Tensor], groups: Mapping[str, str], counters: Mapping[str, int]) -> str:
    for name in counters:
        if tensors[name].dtype != torch.int64:
            return f"has {name!r} in {_short(tensors[name])}, and counters are int64"
    first: dict[str, str] = {}
    for name, group in groups.items():
        other = first.setdefault(group, name)
        if tensors[name].dtype not in FLOATING:
            return f"has {name!r} in {_short(tensors[name])}, and a floating-point dtype is needed"
        if tensors[name].dtype != tensors[other].dtype:
            return f"has {name!r} in {_short(tensors[name])} and {other!r} in {_short(tensors[other])}"
    return ""


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _wrong_counters(tensors: Mapping[str, Tensor], limits: Mapping[str, int]) -> str:
    for name, limit in limits.items():
        low, high = (int(v) for v in tensors[name].aminmax())
        if limit and not 0 <= low <= high < limit:
            return f"has {name!r} = {low if low < 0 else high}, and 0 to {limit - 1} is allowed"
    return ""
