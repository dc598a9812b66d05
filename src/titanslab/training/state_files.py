"""Optimiser, schedule and random state as safetensors and JSON: resuming a run unpickles nothing.

transformers keeps them as pickles, which it reads with `torch.load(weights_only=True)`; release 5.6 cannot read them in
several processes on a CPU.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from titanslab.files import write_whole

OPTIMIZER_TENSORS, OPTIMIZER_JSON = "optimizer.safetensors", "optimizer.json"
SCHEDULER_JSON = "scheduler.json"


def save_optimizer(folder: Path, optimizer: Any, schedule: Any) -> None:
    """Write the states of an optimiser and of its schedule; tensors keep their bits and numbers their exact values."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    state_dict = optimizer.state_dict()
    for index, entries in state_dict["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    _write_json(folder / OPTIMIZER_JSON, {"param_groups": state_dict["param_groups"], "plain": plain})
    _write_json(folder / SCHEDULER_JSON, schedule.state_dict())


def load_optimizer(folder: Path, optimizer: Any, schedule: Any) -> None:
    """Give both the states in the files of `save_optimizer`; ValueError where a file is broken."""
    with _read_json(folder / OPTIMIZER_JSON) as table:
        state: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in table["plain"].items()}
        for key, tensor in load_file(folder / OPTIMIZER_TENSORS).items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in table["param_groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    with _read_json(folder / SCHEDULER_JSON) as values:
        schedule.load_state_dict(dict(values))


def save_random_state(path: Path) -> None:
    """Write the states of the random generators of Python, NumPy, torch and the GPUs of this process as JSON."""
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
    """Set all generators to the states in a file of `save_random_state`; ValueError where it is broken."""
    with _read_json(path) as state:
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
        torch.random.set_rng_state(_bytes(state["torch"]))
        if torch.cuda.is_available() and len(state.get("cuda", [])) == torch.cuda.device_count():
            for index, value in enumerate(state["cuda"]):
                torch.cuda.set_rng_state(_bytes(value), index)


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, default=torch.Tensor.item))  # a learning rate may be a tensor


@contextmanager
def _read_json(path: Path) -> Iterator[Any]:
    """The content of a file; what goes wrong while it is read or used, but for a missing file, raises ValueError."""
    try:
        yield json.loads(path.read_text())
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"the state in {str(path)!r} is broken: {error}; delete its folder to resume from the checkpoint before"
        ) from error
