"""The notes that the commands keep in a memory file beside the memory; each is checked before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct, structs

from titanslab.data.template import check_template
from titanslab.documents import checked

if TYPE_CHECKING:
    from titanslab.graft.cache_file import GraftCacheHeader
    from titanslab.models.cache_file import CacheHeader

Count = Annotated[int, Meta(ge=0, le=1 << 53)]


class Reading(Struct):
    """The place of `titans read` in a text, under "text".

    Args:
        path, bytes: name and size of the text's file.
        start, tokens: the place, as in `reading.text.Place`.
        finished: whether the text was read to its end.
        learn, write_scale: the options of the reading.
    """

    path: Annotated[str, Meta(min_length=1)]
    bytes: Count
    start: Count
    tokens: Count
    finished: bool
    learn: bool | None = None
    write_scale: Annotated[float, Meta(ge=0, le=1e30)] | None = None


class _Manner(Struct, frozen=True):
    template: str | None = None
    max_new_tokens: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None


class _Session(Struct):
    turns: Annotated[int, Meta(ge=0, le=1 << 31)]
    manner: _Manner = _Manner()


def reading_of(file: Path, header: CacheHeader | GraftCacheHeader) -> Reading | None:
    """The reading that a memory file holds, or None; ValueError for notes of one that are damaged."""
    if not isinstance(text := header.notes.get("text"), dict) or "finished" not in text:
        return None
    way_out = f"read the text again: titans read TEXT --save {file} --overwrite"
    reading = checked(text, Reading, f"{file}: notes of the reading", way_out)
    if reading.tokens > _read(header):
        raise ValueError(
            f"{file}: the notes name {reading.tokens:,} tokens of the text, and the memory has read "
            f"{_read(header):,} in all; {way_out}"
        )
    return reading


def session_of(file: Path, header: CacheHeader | GraftCacheHeader) -> tuple[int, dict[str, Any]]:
    """Turns of a session's file, and its manner as `Manner.given` wrote it; ValueError for notes that are damaged."""
    way_out = f"begin another session, or one with this memory: --session FILE --from {file}"
    session = checked(header.notes, _Session, f"{file}: notes of the session", way_out)
    if session.turns > _read(header):
        raise ValueError(
            f"{file}: the notes name {session.turns:,} turns, and the memory has read {_read(header):,} tokens; "
            f"{way_out}"
        )
    if session.manner.template is not None:
        check_template(session.manner.template, f"{file}: notes of the session: manner.template")
    return session.turns, {name: value for name, value in structs.asdict(session.manner).items() if value is not None}


def _read(header: Any) -> int:
    """The tokens that a memory has read, as the header of its kind of file has them."""
    return header.columns if hasattr(header, "columns") else header.tokens


def describe_notes(notes: dict[str, Any]) -> str:
    """The content of a memory file in words, by its notes."""
    if isinstance(turns := notes.get("turns"), int):
        return f"a session of {turns} turns"
    text = notes.get("text")
    path = text.get("path") if isinstance(text, dict) else None
    return f"the memory of {Path(path).name}" if isinstance(path, str) else "a memory"
