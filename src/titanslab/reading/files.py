"""Memory files and the models they belong to, for the commands read, ask, chat and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from titanslab.documents import JSON_BYTES, DocumentError, checked, parse_json
from titanslab.files import check_writable
from titanslab.reading.notes import Reading, describe_notes, reading_of
from titanslab.runs.loading import find_model_folder, open_model, quiet_libraries

if TYPE_CHECKING:
    from titanslab.graft.cache_file import GraftCacheHeader
    from titanslab.models.cache_file import CacheHeader


FORMATS = ("titans-cache", "titans-graft-cache")  # of memory files
MAKE_ONE = "titans read TEXT --model RUN --save FILE makes one"


class _Tensor(Struct):
    """An entry of a safetensors header."""

    data_offsets: tuple[int, int]  # bytes after the header


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
    held = describe_notes(read_header(save, given_as).notes)
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
            entries = parse_json(stream.read(min(size, JSON_BYTES + 1)), dict[str, Any], origin=name)
        known = checked(entries.pop("__metadata__", {}), dict[str, Any], name).get("format") in FORMATS
        tensors = checked(entries, dict[str, _Tensor], name)
        end = 8 + size + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    except DocumentError:
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


def read_header(memory: Path, given_as: str = "") -> CacheHeader | GraftCacheHeader:
    """The header of a memory file, with the notes in it.

    Args:
        memory: the file.
        given_as: the option that names a file to be overwritten; the error then asks for another name.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, is damaged, or is no memory file.
    """
    quiet_libraries()
    from titanslab.reading.models import header_of

    try:
        return header_of(memory)
    except ValueError:
        if not given_as:
            raise
        raise ValueError(
            f"{given_as} {str(memory)!r} exists and is no memory file, or a damaged one; give another name"
        ) from None


def load_reader(model: str | None, memory: Path | None, device: str) -> tuple[Any, Any, Any, str]:
    """The model, its tokenizer, the cache in the file `memory` (None if None) and the model's folder.

    Without `model`, the folder is the one that the memory file names.

    Raises:
        FileNotFoundError, ValueError: no model is named or found, it keeps no memory, or the memory is of another
            model or has more rows than one.
    """
    notes = {} if memory is None else read_header(memory).notes
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
    from titanslab.reading.models import keeps_memory

    if not keeps_memory(network):
        raise ValueError(
            f"model {name!r} is a {network.config.model_type!r} without a graft; only Titans models and models with a "
            "graft (titans graft) keep memories in files"
        )
    try:
        cache = None if memory is None else load_memory(memory, network)
    except ValueError as error:
        own = notes.get("model")
        raise ValueError(f"{error}" + (f"; its model is {own}" if model is not None and own else "")) from None
    return network, tokenizer, cache, str(Path(name).expanduser().resolve())


def load_memory(memory: Path, network: Any) -> Any:
    """The cache in a memory file of a model; ValueError if it is damaged, of another model or of several rows."""
    from titanslab.models.cache_file import WAY_OUT
    from titanslab.reading.models import is_empty, load_cache

    cache = load_cache(memory, network)
    if is_empty(cache) or cache.batch_size != 1:
        raise ValueError(f"{memory} holds {cache.batch_size} rows; the commands work with one")
    if hasattr(network, "graft"):
        return cache
    position = int(cache.position)
    if position > cache.columns and "model" in read_header(memory).notes:  # as every command writes it
        raise ValueError(
            f"{memory} is at token {position:,} of a document, and has read {cache.columns:,} tokens in all; {WAY_OUT}"
        )
    return cache


def unfinished_reading(save: Path, resume: bool, about: dict[str, Any], overwrite: bool = False) -> Reading | None:
    """The reading that `resume` continues, or None for a new one.

    Args:
        save, resume: the memory file, and whether its reading is to be continued.
        about: `path` and `bytes` of the text, as the notes under "text" have them.
        overwrite: whether a new reading may replace the file.

    Raises:
        ValueError: there is no unfinished reading of this text to resume, its notes are damaged, or a new one would
            replace a memory file without `overwrite`, or a file of another kind.
    """
    if not save.exists():
        if resume:
            raise ValueError(f"--resume: there is no {save}; leave --resume out to begin")
        return None
    header = read_header(save, given_as="" if resume else "--save")
    if not resume:
        text = header.notes.get("text")
        if isinstance(text, dict) and text.get("finished") is False and not overwrite:
            raise ValueError(
                f"{save} holds an unfinished reading of {text.get('path')}; go on with --resume, or replace it with "
                "--overwrite"
            )
        check_save(save, overwrite=overwrite)
        return None
    reading = reading_of(save, header)
    if reading is None or reading.finished:
        raise ValueError(f"{save} holds no unfinished reading; to read on with another text use --from {save}")
    if (reading.path, reading.bytes) != (about["path"], about["bytes"]):
        raise ValueError(
            f"{save} was reading {reading.path} ({reading.bytes:,} bytes), not {about['path']} "
            f"({about['bytes']:,} bytes); --resume needs the same text"
        )
    return reading
