"""A session: a conversation with a model whose memory lies in a file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from titanslab.data.template import question_prompt
from titanslab.locks import only_writer
from titanslab.reading.answer import Manner, Sampling, answer
from titanslab.reading.files import check_place, check_save, check_session, load_memory, load_reader, read_header
from titanslab.reading.models import identity, new_cache
from titanslab.reading.notes import session_of

SPOKEN = Sampling(128, 0.8, top_p=0.95)  # for a model whose folder leaves it open


def state_folder() -> Path:
    """The folder of sessions that were given no name and of what was typed: `TITANS_STATE`, else the user's own."""
    root = os.environ.get("TITANS_STATE") or os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "titanslab"


@dataclass
class Session:
    """A conversation; every turn is saved in `file` before the next one.

    Args:
        model, tokenizer, folder: a Titans model or one with a graft, its tokenizer, and the folder of both.
        file: the session's file; it need not exist yet.
        cache: the memory after the turns so far.
        start: the memory that the session began with, and begins with again after `forget`.
        manner: what was chosen by hand, now or when the session began.
        turns: number of lines that were answered.
        held: the lock of the file, released by `close` or at the end of a `with` block.
    """

    model: Any
    tokenizer: Any
    folder: str
    file: Path
    cache: Any
    start: Any
    manner: Manner
    turns: int = 0
    held: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._written = _identity(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open the session."""
        self.held.close()

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return self.manner.sampling(self.model, SPOKEN)

    def prompt(self, line: str) -> str:
        """The text that the model reads for a line of the user."""
        return question_prompt(self.tokenizer, line, self.manner.template)

    def say(self, line: str, streamer: Any = None) -> str:
        """The answer to a line; both are in the memory and in the file afterwards, unless this call is interrupted.

        Args:
            line: text of the user.
            streamer: receives tokens as they come, see `generate()`.

        Raises:
            ValueError: something else has written the file since the last turn; it is left alone.
        """
        if _identity(self.file) != self._written:
            raise ValueError(
                f"session {str(self.file)!r} was changed by another program, such as a second chat; end this one, or "
                "give each its own --session"
            )
        prompt = self.prompt(line)
        text, after = answer(self.model, self.tokenizer, self.cache, prompt, self.sampling, streamer)
        notes = {"model": self.folder, "turns": self.turns + 1, "manner": self.manner.given()}
        after.save(self.file, self.model, notes)
        self.cache, self.turns, self._written = after, self.turns + 1, _identity(self.file)
        return text

    def forget(self) -> Path | None:
        """Begin again from the memory of the start; returns where the file of the turns so far is kept, if any."""
        self.cache, self.turns = self.start.fork(), 0
        if not self.file.exists():
            return None
        kept = self.file.with_name(self.file.name + ".forgotten")
        os.replace(self.file, kept)
        self._written = None
        return kept

    def save_as(self, file: Path) -> None:
        """Write the memory of the turns so far to another file, for `titans ask` or a new session.

        Raises:
            ValueError: the file exists, another process writes it, its folder does not exist, or nothing was said yet.
        """
        check_place(file, "/save")
        with only_writer(file, "/save"):
            check_save(file, "/save")
            self.cache.save(file, self.model, {"model": self.folder})


def open_session(file: Path | None, model: str | None, start: Path | None, device: str, manner: Manner) -> Session:
    """Begin a session, or go on with one; its file is locked until the session is closed.

    Args:
        file: the session's file; None = the one of this model, and of `start`, in the user's state folder.
        model: name of the model; None = the one that the session or `start` names.
        start: a memory file that a new session begins with; None = the model's initial memory.
        device: where the model goes.
        manner: values chosen by hand; those of an earlier part of the session hold where it has None.

    Raises:
        FileNotFoundError, ValueError: no model is named or found, `file` holds something else than a session, a
            session that goes on was given a start, another process has it open, or the state folder cannot be made.
    """
    with ExitStack() as stack:
        if file is not None:
            check_place(file, "--session")
            stack.enter_context(only_writer(file, "session"))
        session = _session(file, model, start, device, manner, stack)
        session.held = stack.pop_all()
        return session


def _session(
    file: Path | None, model: str | None, start: Path | None, device: str, manner: Manner, stack: ExitStack
) -> Session:
    """`open_session` for a file that is locked already; the lock of the default file goes onto `stack`."""
    goes_on = file is not None and file.exists()
    if file is not None:
        _check_file(file, start)
    check_session(file, model, start)
    network, tokenizer, cache, folder = load_reader(model, file if goes_on else start, device)
    if file is None:
        file = _default_file(network, folder, start)
        stack.enter_context(only_writer(file, "session"))
        if file.exists():
            _check_file(file, start)
            cache, goes_on = load_memory(file, network), True
    turns, earlier = session_of(file, read_header(file)) if goes_on else (0, dict[str, Any]())
    empty = new_cache(network)
    cache = empty if cache is None else cache
    begun = empty if goes_on else cache
    return Session(network, tokenizer, folder, file, cache, begun, manner.over(earlier), turns)


def _check_file(file: Path, start: Path | None) -> None:
    """ValueError if no session can be kept in `file`, or if a session there cannot begin with `start`."""
    check_place(file, "--session")
    if not file.exists():
        return
    if start is not None:
        raise ValueError(
            f"session {str(file)!r} exists already; go on with it by --session {str(file)!r} without --from, or name "
            "another session"
        )
    if "turns" not in read_header(file).notes:
        raise ValueError(f"{str(file)!r} is a memory, no session; begin one: --session FILE --from {str(file)!r}")


def _identity(file: Path) -> tuple[int, int] | None:
    """Values that change when a file is written, None where it does not exist."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _default_file(network: Any, folder: str, start: Path | None) -> Path:
    """The session's file of a model, by its weights, in the user's state folder, which is made."""
    words = [Path(folder).name, *([] if start is None else [start.stem]), identity(network)[:8]]
    sessions = state_folder() / "sessions"
    try:
        sessions.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{str(sessions)!r} cannot be made ({error.strerror}); name a file with --session") from None
    return sessions / f"{'-'.join(words)}.session"
