"""Memory files and the models they belong to, for the commands read, ask, chat and inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.files import check_writable
from titanslab.runs.loading import find_model_folder, open_model, quiet_libraries

if TYPE_CHECKING:
    from titanslab.models.cache import TitansCache


MAKE_ONE = "titans read TEXT --model RUN --save FILE makes one"
LONGEST_HEADER = 100_000_000  # bytes, as in safetensors


def check_place(file: Path, given_as: str) -> None:
    """ValueError if no file can be written under the name `file`, the value of the option `given_as`."""
    if file.is_dir():
        raise ValueError(f"{given_as} {str(file)!r} is a folder; give the name of a file")
    if not file.parent.exists():
        raise ValueError(f"{given_as} {str(file)!r}: the folder {str(file.parent)!r} does not exist")
    check_writable(file.parent, f"{given_as}: folder")


def check_save(save: Path, given_as: str = "--save", overwrite: bool = False) -> None:
    """ValueError if a memory may not be saved under the name `save`, the value of the option `given_as`.

    A file that is there may be replaced if it is a memory file and `overwrite` is set.
    """
    check_place(save, given_as)
    if not save.exists():
        return
    held = describe_notes(read_notes(save, given_as))
    if not overwrite:
        raise ValueError(f"{given_as} {str(save)!r} holds {held}; give another name, or --overwrite to replace it")


def check_memory_file(file: Path, given_as: str, fix: str = MAKE_ONE) -> None:
    """FileNotFoundError or ValueError if `file`, the value of the option `given_as`, is no whole memory file.

    It reads the header alone, and loads no library of models.
    """
    name = f"{given_as} {str(file)!r}"
    if not file.exists():
        raise FileNotFoundError(f"{name} does not exist (looked for {file.absolute()}); {fix}")
    if not file.is_file():
        raise ValueError(f"{name} is a folder or a device, not a memory file; {fix}")
    try:
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size) if size <= LONGEST_HEADER else b"")
        known = header.pop("__metadata__", {}).get("format") == "titans-cache"
        end = 8 + size + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        known, end = False, 0
    if not known:
        raise ValueError(f"{name} is no memory file; {fix}")
    if file.stat().st_size != end:
        raise ValueError(f"{name} is damaged: it has {file.stat().st_size:,} bytes instead of {end:,}; make it again")


def check_session(file: Path | None, model: str | None, start: Path | None) -> None:
    """ValueError if a session's file is no memory file or nothing names its model; arguments as of `open_session`."""
    if file is not None and file.is_file():
        check_memory_file(file, "--session", "give another name")
    if model is None and start is None and (file is None or not file.exists()):
        new = "" if file is None else f"session {str(file)!r} is new: "
        raise ValueError(f"{new}give --model RUN, a run folder or a saved model")


def describe_notes(notes: dict[str, Any]) -> str:
    """The content of a memory file in words, by its notes."""
    if "turns" in notes:
        return f"a session of {notes['turns']} turns"
    text = notes.get("text")
    return "a memory" if text is None else f"the memory of {Path(text['path']).name}"


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
    name = notes.get("model") if model is None else model
    if not isinstance(name, str):
        raise ValueError(f"{memory} does not say which model it belongs to; give --model RUN")
    try:
        find_model_folder(name)
    except (FileNotFoundError, ValueError) as error:
        if model is None:
            raise ValueError(f"{memory} was written by a model that is not there: {error}; give --model RUN") from None
        raise
    network, tokenizer = open_model(name, device)
    if network.config.model_type != "titans":
        raise ValueError(
            f"model {name!r} is a {network.config.model_type!r}; only Titans models keep memories in files"
        )
    try:
        cache = None if memory is None else load_memory(memory, network)
    except ValueError as error:
        own = notes.get("model")
        raise ValueError(f"{error}" + (f"; its model is {own}" if model is not None and own else "")) from None
    return network, tokenizer, cache, str(Path(name).expanduser().resolve())


def load_memory(memory: Path, network: Any) -> TitansCache:
    """The cache in a memory file of a model; ValueError if it is of another model or has more rows than one."""
    from titanslab.models.cache import TitansCache

    cache = TitansCache.load(memory, network)
    if cache.batch_size != 1:
        raise ValueError(f"{memory} holds {cache.batch_size} rows; the commands work with one")
    return cache


def unfinished_reading(save: Path, resume: bool, about: dict[str, Any], overwrite: bool = False) -> dict[str, Any]:
    """The notes of the reading that `resume` continues, or {} for a new one.

    Args:
        save, resume: the memory file, and whether its reading is to be continued.
        about: `path` and `bytes` of the text, as the notes under "text" have them.
        overwrite: whether a new reading may replace the file.

    Raises:
        ValueError: there is no unfinished reading of this text to resume, or a new one would replace a memory file
            without `overwrite`, or a file of another kind.
    """
    if not save.exists():
        if resume:
            raise ValueError(f"--resume: there is no {save}; leave --resume out to begin")
        return {}
    notes = read_notes(save, given_as="" if resume else "--save")
    text = notes.get("text", {})
    finished = text.get("finished", True)
    if not resume:
        if not finished and not overwrite:
            raise ValueError(
                f"{save} holds an unfinished reading of {text['path']}; go on with --resume, or replace it with "
                "--overwrite"
            )
        check_save(save, overwrite=overwrite)
        return {}
    if finished:
        raise ValueError(f"{save} holds no unfinished reading; to read on with another text use --from {save}")
    if (text["path"], text["bytes"]) != (about["path"], about["bytes"]):
        raise ValueError(
            f"{save} was reading {text['path']} ({text['bytes']:,} bytes), not {about['path']} "
            f"({about['bytes']:,} bytes); --resume needs the same text"
        )
    return notes
