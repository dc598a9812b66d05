"""Optimiser, schedule and random state as safetensors and JSON, so that resuming unpickles nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from titanslab.files import write_whole

OPTIMIZER_TENSORS, OPTIMIZER_JSON = "optimizer.safetensors", "optimizer.json"
SCHEDULER_JSON = "scheduler.json"


def save_optimizer(folder: Path, state_dict: dict[str, Any]) -> None:
    """Write an optimiser's state_dict; tensors keep their exact bits, numbers their exact value."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state_dict["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    _write_json(folder / OPTIMIZER_JSON, {"param_groups": state_dict["param_groups"], "plain": plain})


def load_optimizer(folder: Path) -> dict[str, Any]:
    """Read what `save_optimizer` wrote; raises ValueError when it is broken."""
    try:
        table = json.loads((folder / OPTIMIZER_JSON).read_text())
        state: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in table["plain"].items()}
        for key, tensor in load_file(folder / OPTIMIZER_TENSORS).items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        return {"state": state, "param_groups": [_group(group) for group in table["param_groups"]]}
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"the optimiser's state in {str(folder)!r} is broken: {error}") from error


def save_scheduler(folder: Path, state_dict: dict[str, Any]) -> None:
    """Write a learning rate scheduler's state_dict, which holds numbers and lists."""
    _write_json(folder / SCHEDULER_JSON, state_dict)


def load_scheduler(folder: Path) -> dict[str, Any]:
    """Read what `save_scheduler` wrote; raises ValueError when it is broken."""
    return _read_json(folder / SCHEDULER_JSON)


def save_random_state(path: Path) -> None:
    """Write the state of Python's, NumPy's and torch's generators (and this process's GPU's) as JSON."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss_next],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": _hex(torch.random.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = [_hex(torch.cuda.get_rng_state(i)) for i in range(torch.cuda.device_count())]
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, state)


def load_random_state(path: Path) -> None:
    """Set all generators to what `save_random_state` wrote; raises ValueError when it is broken."""
    state = _read_json(path)
    try:
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
        torch.random.set_rng_state(_bytes(state["torch"]))
        if torch.cuda.is_available() and len(state.get("cuda", [])) == torch.cuda.device_count():
            for index, value in enumerate(state["cuda"]):
                torch.cuda.set_rng_state(_bytes(value), index)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"the random state {str(path)!r} is broken: {error}") from error


def _group(group: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if key == "betas" else value for key, value in group.items()}


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is broken: {error}") from error
