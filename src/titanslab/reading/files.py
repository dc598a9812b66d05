"""What read, ask and chat share: a memory file and the model it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titanslab.models.cache import TitansCache


def check_save(save: Path, given_as: str = "--save") -> None:
    """ValueError for a name, of the option `given_as`, that a memory cannot be saved to."""
    if save.is_dir():
        raise ValueError(f"{given_as} {str(save)!r} is a folder; give the name of a file")
    if not save.parent.exists():
        raise ValueError(f"{given_as} {str(save)!r}: the folder {str(save.parent)!r} does not exist")


def read_notes(memory: Path, given_as: str = "") -> dict[str, Any]:
    """The notes in a memory file; `given_as` is the option whose file may hold nothing else.

    Raises FileNotFoundError and ValueError in one line.
    """
    from titanslab.runs.quiet import quiet_libraries

    quiet_libraries()
    from titanslab.models.cache import TitansCache

    try:
        return TitansCache.header(memory).notes
    except ValueError:
        if not given_as:
            raise
        raise ValueError(f"{given_as} {str(memory)!r} exists and is no memory file; give another name") from None


def load_reader(model: str | None, memory: Path | None, device: str) -> tuple[Any, Any, TitansCache | None, str]:
    """Model, tokenizer, the cache in `memory` (None where None) and the model's folder.

    Without `model`, the folder is the one that the memory file names. Raises ValueError in one line for a
    missing name, a model without memory states, and a memory of another model.
    """
    from titanslab.runs.loading import find_model_folder, open_model

    notes = {} if memory is None else read_notes(memory)
    name = model or notes.get("model")
    if not isinstance(name, str):
        raise ValueError(f"{memory} does not say which model it belongs to; give --model RUN")
    try:
        find_model_folder(name)
    except (FileNotFoundError, ValueError) as error:
        if model is None:
            raise ValueError(f"{memory} was written by a model that is not there: {error}; give --model RUN") from None
        raise
    network, tokenizer, _ = open_model(name, device)
    from titanslab.models.cache import TitansCache

    if network.config.model_type != "titans":
        raise ValueError(
            f"model {name!r} is a {network.config.model_type!r}; only Titans models keep memories in files"
        )
    cache = None if memory is None else TitansCache.load(memory, network)
    if cache is not None and cache.batch_size != 1:
        raise ValueError(f"{memory} holds {cache.batch_size} rows; the commands work with one")
    return network, tokenizer, cache, str(Path(name).expanduser().resolve())
