"""The base of a grafted model: found from the folder of the graft, and fetched where it is a name on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from titanslab.documents import reason

ADAPTER, OWN_BASE = "adapter_config.json", "base"  # the file that makes a folder a graft; the folder of a trained base
HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
NEEDED = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")


def is_graft(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The name of a graft's base: the folder inside its own, else the name that it was saved with.

    Raises:
        ValueError: the folder holds an adapter of another kind, or one that names no base.
    """
    from titanslab.graft.adapter import read_adapter_config

    config = read_adapter_config(folder)
    if (folder / OWN_BASE).is_dir():
        return str(folder / OWN_BASE)
    if not config.base_model_name_or_path:
        raise ValueError(f"the graft in {str(folder)!r} names no base; put its base into {str(folder / OWN_BASE)!r}")
    return config.base_model_name_or_path


def base_folder(name: str) -> Path:
    """The folder of a base: `name` itself, or a copy of that model on the hub, fetched where it is not there yet.

    Raises:
        FileNotFoundError: there is no such folder, and the hub has no such model or cannot be reached.
    """
    path = Path(name).expanduser()
    if path.exists() or not HUB.fullmatch(name):
        return path
    from huggingface_hub import snapshot_download

    for local in (True, False):
        try:
            return Path(snapshot_download(name, allow_patterns=list(NEEDED), local_files_only=local))
        except Exception as error:  # of the hub's client and of its HTTP library
            problem = reason(error, 200)
    raise FileNotFoundError(
        f"base {name!r} is no folder here (looked for {path.absolute()}), and cannot be fetched from the hub: {problem}"
    )
