"""Optimiser, schedule and random state as safetensors and JSON: resuming a run unpickles nothing.

transformers keeps them as pickles, which it reads with `torch.load(weights_only=True)`; release 5.6 cannot read them in
several processes on a CPU.
"""

import dataclasses
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
from msgspec import Meta, Struct

from titanslab.documents import checked, read_json, reason
from titanslab.files import write_whole
from titanslab.runs.checkpoints import step_of
from titanslab.runs.weights import headers
from titanslab.training.pieces import Piece, Pieces, file_of, files_of, save_pieces
from titanslab.training.sharding import own_rows, shard_like

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Word = Annotated[int, Meta(ge=0, lt=1 << 32)]  # of the state of a generator
Rate = Annotated[float, Meta(ge=0)]


class Optimizer(Struct):
    """optimizer.json: the groups of parameters, and the values of a parameter's state that are not tensors."""

    param_groups: list[dict[str, Any]]
    plain: dict[str, dict[str, Any]]


class Schedule(Struct, forbid_unknown_fields=True):
    """scheduler.json: the state of a `LambdaLR`; `verbose` is that of an older torch."""

    base_lrs: list[Rate]
    last_epoch: Count
    step_count: Count
    last_lr: list[Rate]
    lr_lambdas: list[dict[str, Any] | None]
    get_lr_called_within_step: bool = False
    is_initial: bool = False
    verbose: bool = False


class RandomState(Struct):
    """random_state_N.json: the generators' states; torch's are bytes in hexadecimal digits."""

    python: tuple[Annotated[int, Meta(ge=3, le=3)], list[Word], float | None]
    numpy: tuple[str, list[Word], Count, Count, float]
    torch: str
    cuda: list[str] = []


class Batch(Struct):
    """batch.json: the processes that wrote a checkpoint, and the rows of a step on all of them."""

    processes: Annotated[int, Meta(ge=1)]
    rows: Annotated[int, Meta(ge=1)]


class TrainerState(Struct):
    """trainer_state.json as far as a resumed run depends on it."""

    global_step: Count
    num_input_tokens_seen: Count
    max_steps: int
    log_history: list[dict[str, Any]]
    train_batch_size: int | None = None
    num_train_epochs: int | None = None
    epoch: float | None = None
    save_steps: float | None = None
    logging_steps: float | None = None
    eval_steps: float | None = None
    best_model_checkpoint: str | None = None
    best_global_step: int | None = None
    best_metric: float | None = None
    total_flos: float = 0
    stateful_callbacks: dict[str, Any] = {}


OPTIMIZER_TENSORS, OPTIMIZER_JSON = "optimizer.safetensors", "optimizer.json"
SCHEDULER_JSON = "scheduler.json"
TRAINER_JSON, BATCH_JSON = "trainer_state.json", "batch.json"


def save_optimizer(folder: Path, optimizer: Any, schedule: Any, process: int = 0, processes: int = 1) -> None:
    """Write the states of an optimiser and of its schedule; tensors keep their bits and numbers their exact values.

    Each of several processes that share the parameters writes the rows that it holds, the first one all the rest.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    pieces: dict[str, Piece] = {}
    state_dict = optimizer.state_dict()
    for index, entries in state_dict["state"].items():
        for name, value in entries.items():
            key, rows = f"{index}.{name}", own_rows(value)
            if rows is not None:
                if rows.stop > rows.start:
                    tensors[key] = value.to_local().detach().cpu().contiguous()
                    pieces[key] = rows.start, value.shape[0]
            elif process > 0:
                continue
            elif isinstance(value, torch.Tensor):
                tensors[key] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    save_pieces(folder / file_of(OPTIMIZER_TENSORS, process, processes), tensors, pieces)
    if process > 0:
        return
    _write_json(folder / OPTIMIZER_JSON, {"param_groups": state_dict["param_groups"], "plain": plain})
    _write_json(folder / SCHEDULER_JSON, schedule.state_dict())


def load_optimizer(folder: Path, optimizer: Any, schedule: Any) -> None:
    """Give both the states in the files of `save_optimizer`; ValueError where a file is broken or of another run."""
    with _using(folder / OPTIMIZER_JSON):
        table = read_json(folder / OPTIMIZER_JSON, Optimizer)
        state: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in table.plain.items()}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        with Pieces(files_of(folder, OPTIMIZER_TENSORS)) as pieces:
            for key in pieces.shapes:
                index, _, name = key.partition(".")
                own = parameters[int(index)] if int(index) < len(parameters) else None
                rows = None if own is None or pieces.shapes[key] != tuple(own.shape) else own_rows(own)
                tensor = pieces.read(key, rows)
                state.setdefault(int(index), {})[name] = tensor if rows is None else shard_like(tensor, own)
        groups = [_joined(*pair) for pair in zip(table.param_groups, _groups(optimizer), strict=True)]
        _check_state(state, optimizer)
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    with _using(folder / SCHEDULER_JSON):
        values = _schedule(folder)
        count = len(groups)
        if not len(values["base_lrs"]) == len(values["_last_lr"]) == len(values["lr_lambdas"]) == count:
            raise ValueError(f"its learning rates are not those of {count} groups of parameters")
        schedule.load_state_dict(values)


def check_states(folder: Path) -> None:
    """Raise ValueError or OSError for the first broken file among the states in a checkpoint; nothing is changed.

    Every file is checked by itself; `load_optimizer` compares them with the optimiser.
    """
    with _using(folder / TRAINER_JSON):
        table = read_json(folder / TRAINER_JSON, dict[str, Any], finite=False)
        state = checked(table, TrainerState, str(folder / TRAINER_JSON))
        known = {field.name for field in dataclasses.fields(transformers.TrainerState)}
        if unknown := table.keys() - known:
            raise ValueError(f"it has the unknown key {min(unknown)!r}")
        if state.global_step != (step := step_of(folder)):
            raise ValueError(f"global_step is {state.global_step} in the checkpoint of step {step}")
    with _using(folder / OPTIMIZER_JSON):
        read_json(folder / OPTIMIZER_JSON, Optimizer)
        files = files_of(folder, OPTIMIZER_TENSORS)
        for tensor in headers(files):
            if not re.fullmatch(r"\d{1,9}\.\w+", tensor.name, re.ASCII) or tensor.dtype[0] not in "FB":
                raise ValueError(f"its tensor {tensor.name!r} of dtype {tensor.dtype} is none of an optimiser")
        with Pieces(files) as pieces:
            pieces.check()
    with _using(folder / SCHEDULER_JSON):
        _schedule(folder)
    for path in sorted(folder.glob("random_state_*.json")):
        with _using(path):
            read_json(path, RandomState)
    load_batch(folder)


def _schedule(folder: Path) -> dict[str, Any]:
    """The state of a `LambdaLR`; torch's names of its entries begin with underscores, as those of the file."""
    values = read_json(folder / SCHEDULER_JSON, dict[str, Any])
    checked({name.lstrip("_"): value for name, value in values.items()}, Schedule, str(folder / SCHEDULER_JSON))
    return values


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    return optimizer.state_dict()["param_groups"]


def _joined(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The group of the optimiser with the learning rate that was saved; ValueError where another number differs."""
    for key in ("params", *(k for k, v in now.items() if isinstance(v, int | float | tuple) and type(v) is not bool)):
        value = tuple(saved[key]) if isinstance(now[key], tuple) else saved[key]
        if key != "lr" and value != now[key]:
            raise ValueError(f"param_groups has {key} = {str(value)[:80]}, and the recipe's is {str(now[key])[:80]}")
    return now | {"lr": checked(saved["lr"], Rate, "param_groups: lr")}


def _check_state(state: dict[int, dict[str, Any]], optimizer: Any) -> None:
    """ValueError unless each tensor has the shape of its parameter, or is one number, and none is missing."""
    number = 0
    for group in optimizer.param_groups:
        names = set[str]()
        for parameter in group["params"]:
            own = state.get(number, {})
            names = names or set(own)
            for name, value in own.items():
                if not isinstance(value, torch.Tensor) or value.numel() == 1 != parameter.numel():
                    continue
                if value.shape != parameter.shape:
                    raise ValueError(f"{number}.{name} has shape {list(value.shape)}, not {list(parameter.shape)}")
            if own and own.keys() != names:
                raise ValueError(f"parameter {number} has the values {sorted(own)}, and those before {sorted(names)}")
            number += 1
    if strange := [index for index in state if not 0 <= index < number]:
        raise ValueError(f"it has values of parameter {strange[0]}, and there are {number} parameters")


def save_batch(folder: Path, processes: int, rows: int) -> None:
    """Write how many processes make a checkpoint, and the rows of a step on all of them."""
    _write_json(folder / BATCH_JSON, {"processes": processes, "rows": rows})


def load_batch(folder: Path) -> Batch | None:
    """What `save_batch` wrote; None for a checkpoint of an earlier release. ValueError where the file is broken."""
    if not (folder / BATCH_JSON).exists():
        return None
    with _using(folder / BATCH_JSON):
        return read_json(folder / BATCH_JSON, Batch)


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
    with _using(path):
        state = read_json(path, RandomState)
        version, internal, gauss_next = state.python
        random.setstate((version, tuple(internal), gauss_next))
        name, keys, *rest = state.numpy
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
        torch.random.set_rng_state(_bytes(state.torch))
        if torch.cuda.is_available() and len(state.cuda) == torch.cuda.device_count():
            for index, value in enumerate(state.cuda):
                torch.cuda.set_rng_state(_bytes(value), index)


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, default=torch.Tensor.item))  # a learning rate may be a tensor


@contextmanager
def _using(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read and used, but for a missing file, raises a ValueError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"the state in {str(path)!r} is broken: {reason(error)}; delete its folder to resume from the checkpoint "
            "before"
        ) from error
