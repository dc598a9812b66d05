"""What was measured on this machine: which code reads and decodes fastest, by device, dtype and shape of memory.

`titans info --measure` (`measure.py`) writes the file, `backends.py` reads it once, when it is imported.
"""

import json
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from titanslab.memory.cpu.build import cache_folder
from titanslab.memory.network import MemoryNetwork

FILE = "measured.json"
_log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """The fastest ways of one shape.

    reading: "triton" or a loop of `chunked.op`. decoding: "triton" or "recurrent". The rest are the reasons.
    """

    reading: str
    decoding: str
    why_reading: str
    why_decoding: str


def path() -> Path:
    """The file of this user's measurements."""
    return cache_folder() / FILE


def key(device: torch.device, dtype: torch.dtype, network: MemoryNetwork, head_dim: int, chunk_size: int) -> str:
    """The name of one measurement: of a device, a dtype of q, and a memory as far as speed depends on it.

    Another processor, torch or Triton has measurements of its own.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    shape = [network.depth, network.expansion, network.residual, network.norm, network.grad_clip is not None]
    versions = torch.__version__, _triton_version()
    return json.dumps([name, str(dtype).removeprefix("torch."), *shape, head_dim, chunk_size, *versions])


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def read() -> dict[str, Measured]:
    """All measurements of the file; none where there is no file, or an unreadable one, which is reported once."""
    try:
        return {name: Measured(**entry) for name, entry in json.loads(path().read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        _log.warning("%s is not read (%s); `titans info --measure` writes it again", path(), error)
        return {}


def find(
    device: torch.device, dtype: torch.dtype, network: MemoryNetwork, head_dim: int, chunk_size: int
) -> Measured | None:
    """The measurement with that `key`; None where there is none."""
    return FOUND.get(key(device, dtype, network, head_dim, chunk_size)) if FOUND else None


def add(name: str, found: Measured) -> None:
    """Keep the measurement with the key `name` in this process and in the file, which is written whole or not."""
    FOUND.update({**read(), name: found})
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".new")
    scratch.write_text(json.dumps({n: f._asdict() for n, f in FOUND.items()}, indent=1) + "\n", encoding="utf-8")
    scratch.replace(target)


FOUND = read()
