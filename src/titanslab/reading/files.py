"""Memory files and the models they belong to, for the commands read, ask, chat and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.runs.loading import find_model_folder, open_model, quiet_libraries

if TYPE_CHECKING:
    from titanslab.models.cache import TitansCache


def check_save(save: Path, given_as: str = "--save") -> None:
    """ValueError if no memory can be saved under the name `save`, the value of the option `given_as`."""
    if save.is_dir():
        raise ValueError(f"{given_as} {str(save)!r} is a folder; give the name of a file")
    if not save.parent.exists():
        raise ValueError(f"{given_as} {str(save)!r}: the folder {str(save.parent)!r} does not exist")


def read_notes(memory: Path, given_as: str = "") -> dict[str, Any]:
    """The notes in a memory file.

    Args:
        memory: the file.
        given_as: the option that names a file to be overwritten; the error then asks for another name.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is no memory file.
    """
    quiet_libraries()
    from titanslab.models.cache import TitansCache

    try:
        return TitansCache.header(memory).notes
    except ValueError:
        if not given_as:
            raise
        raise ValueError(f"{given_as} {str(memory)!r} exists and is no memory file; give another name") from None


def load_reader(model: str | None, memory: Path | None, device: str) -> tuple[Any, Any, TitansCache | None, str]:
    """The model, its tokenizer, the cache in the file `memory` (None if None) and the model's folder.

    Without `model`, the folder is the one that the memory file names.

    Raises:
        FileNotFoundError, ValueError: no model is named or found, it is no Titans model, or the memory is of another
            model or has more rows than one.
    """
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
    network, tokenizer = open_model(name, device)
    from titanslab.models.cache import TitansCache

    if network.config.model_type != "titans":
        raise ValueError(
            f"model {name!r} is a {network.config.model_type!r}; only Titans models keep memories in files"
        )
    cache = None if memory is None else TitansCache.load(memory, network)
    if cache is not None and cache.batch_size != 1:
        raise ValueError(f"{memory} holds {cache.batch_size} rows; the commands work with one")
    return network, tokenizer, cache, str(Path(name).expanduser().resolve())


def unfinished_reading(save: Path, resume: bool, about: dict[str, Any]) -> dict[str, Any]:
    """The notes of the reading that `resume` continues, or {} for a new one.

    Args:
        save, resume: the memory file, and whether its reading is to be continued.
        about: `path` and `bytes` of the text, as the notes under "text" have them.

    Raises:
        ValueError: there is no unfinished reading of this text to resume, or a new one would overwrite one.
    """
    if not save.exists():
        if resume:
            raise ValueError(f"--resume: there is no {save}; leave --resume out to begin")
        return {}
    notes = read_notes(save, given_as="" if resume else "--save")
    text = notes.get("text", {})
    finished = text.get("finished", True)
    if not resume:
        if not finished:
            raise ValueError(
                f"{save} holds an unfinished reading of {text['path']}; go on with --resume, or delete the file"
            )
        return {}
    if finished:
        raise ValueError(f"{save} holds no unfinished reading; to read on with another text use --from {save}")
    if (text["path"], text["bytes"]) != (about["path"], about["bytes"]):
        raise ValueError(
            f"{save} was reading {text['path']} ({text['bytes']:,} bytes), not {about['path']} "
            f"({about['bytes']:,} bytes); --resume needs the same text"
        )
    return notes
